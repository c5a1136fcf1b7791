"""PDFs as they exist, and PDFs made to hurt. Where a file comes from: pdfs/ are samples of pypdf, the rest is built here."""

import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pypdf
import pytest

from data_sources.documents import Document, GivenUp
from data_sources.pdf import PAGES, PdfFiles
from data_sources.pdf_process import LIMITS, Limits
from data_sources.pdf_text import paragraphs
from tests.data_sources.pdf_builder import built, column, of_contents, of_objects

SAMPLES = Path(__file__).parent / "pdfs"
QUICK = Limits(seconds=1, memory=400 << 20)
WORDS = ["the", "of", "river", "stone", "under", "light", "house", "winter", "paper", "garden", "between", "morning", "table", "letter", "nothing", "reason"]


def prose(lines: int, seed: int = 0) -> list[str]:
    """Lines of even width that make no sense and say so to nobody."""
    draw = random.Random(seed)
    return textwrap.wrap(" ".join(draw.choice(WORDS) for _ in range(lines * 12)), 60)[:lines]


def everything(reader: PdfFiles) -> list[Document]:
    return [document for shard in range(len(reader.shards())) for block in range(reader.blocks(shard) or 0) for document in reader.read(shard, block) or []]


@pytest.fixture
def opened() -> Iterator[Callable[..., PdfFiles]]:
    """Makes readers, and closes them after the test."""
    readers: list[PdfFiles] = []

    def open_(path: Path, limits: Limits = LIMITS) -> PdfFiles:
        readers.append(PdfFiles(path, limits))
        return readers[-1]

    yield open_
    for reader in readers:
        reader.close()


Open = Callable[..., PdfFiles]


def texts(opened: Open, folder: Path, *pages: list[tuple[int, int, str]]) -> str:
    """What the reader makes of a PDF with these pages."""
    (folder / "built.pdf").write_bytes(built(pages))
    return "\n\n".join(document.text for document in everything(opened(folder / "built.pdf")))


# Real files


def test_a_document_of_latex_becomes_paragraphs(opened: Open) -> None:
    documents = everything(opened(SAMPLES / "pdflatex-outline.pdf"))
    text = "\n\n".join(document.text for document in documents)
    assert documents[0].place == "pdflatex-outline.pdf, page 1"
    assert "\n\n2 Bar\n\nHello, here is some text without a meaning. This text should show what a printed text will look like at this place." in text
    assert not any(line.isdigit() for line in text.split("\n"))


def test_all_scripts_are_kept(opened: Open) -> None:
    assert {"Hello World", "Привет, мир", "你好世界"} <= {
        line for document in everything(opened(SAMPLES / "multilang.pdf")) for line in document.text.split("\n")
    }


def test_an_empty_password_opens_and_a_real_one_is_named(opened: Open) -> None:
    reader = opened(SAMPLES)
    assert any("pdf encryption test" in document.text and document.place.startswith("r5-owner") for document in everything(reader))
    assert reader.notices() == ["imagemagick-lzw.pdf holds no text (scanned?); passed over", "r6-both-passwords.pdf is encrypted with a password; passed over"]
    assert reader.notices() == []


@pytest.mark.parametrize(
    ("algorithm", "user", "found"), [("RC4-128", "", True), ("AES-256", "", True), ("RC4-128", "secret", False), ("AES-256", "secret", False)]
)
def test_encryption(opened: Open, tmp_path: Path, algorithm: str, user: str, found: bool) -> None:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(built([column(prose(5))])))
    writer.encrypt(user, "owner", algorithm=algorithm)
    writer.write(tmp_path / "secret.pdf")
    (tmp_path / "open.pdf").write_bytes(built([column(prose(5))]))
    reader = opened(tmp_path)
    assert len(everything(reader)) == 1 + found
    assert reader.notices() == ([] if found else ["secret.pdf is encrypted with a password; passed over"])


def test_aes_without_its_library_says_what_to_install(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("cryptography", "Crypto"):
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(GivenUp, match=r"r5-owner-password.pdf is encrypted with AES, which needs: pip install 'pypdf\[crypto\]'"):
        everything(opened(SAMPLES / "r5-owner-password.pdf"))


@pytest.mark.slow
def test_every_sample_of_pypdf_is_read_or_named(opened: Open, tmp_path: Path) -> None:
    options = ["--no-binary", ":all:", "--no-deps", f"pypdf=={pypdf.__version__}"]
    fetch = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(tmp_path)]
    if subprocess.run(fetch, capture_output=True).returncode:
        pytest.skip("the source distribution of pypdf can't be fetched")
    subprocess.run(["tar", "xf", next(tmp_path.glob("*.tar.gz")), "-C", tmp_path], check=True)
    reader = opened(tmp_path)
    read = {document.place.rsplit(", page")[0] for document in everything(reader)}
    named = reader.notices()
    assert len(reader.shards()) > 60
    assert len(read) + len(named) >= len({Path(name).name for name in reader.shards()})
    assert len(read) > 40


# The order and cleaning of text


def test_columns_drawn_line_by_line_are_read_one_after_the_other(opened: Open, tmp_path: Path) -> None:
    left, right = textwrap.wrap(" ".join(prose(40, 1)), 42)[:45], textwrap.wrap(" ".join(prose(40, 2)), 42)[:45]
    title = (60, 810, "A title that runs through the page from the left side to the other")
    rows = [line for pair in zip(column(left), column(right, x=320), strict=True) for line in pair]
    text = " ".join(texts(opened, tmp_path, [title, *rows]).split())
    assert text == " ".join([title[2], *left, *right])


def test_columns_drawn_one_after_the_other_stay(opened: Open, tmp_path: Path) -> None:
    left, right = prose(40, 1), prose(40, 2)
    assert " ".join(texts(opened, tmp_path, [*column(left), *column(right, x=320)]).split()) == " ".join([*left, *right])


def test_a_table_is_read_by_rows(opened: Open, tmp_path: Path) -> None:
    rows = [(60, 780 - 14 * row, f"Item {row:02}") for row in range(50)]
    text = texts(
        opened,
        tmp_path,
        [cell for x, y, name in rows for cell in ((x, y, name), (320, y, f"costs {name[-2:]}, as it has from the first day of the year to the last of them"))],
    )
    assert "Item 07 costs 07, as it has" in " ".join(text.split())


def test_words_are_joined_over_line_ends_and_compounds_keep_their_hyphen(opened: Open, tmp_path: Path) -> None:
    page = [
        "We found that the infor-",
        "mation on a well-known matter spread through a well-",
        "known self-",
        "made process, which COVID-",
        "19 and Jean-",
        "Paul changed; nobody was re-",
        "elected.",
    ]
    assert texts(opened, tmp_path, column(page)) == (
        "We found that the information on a well-known matter spread through a well-known self-made process, "
        "which COVID-19 and Jean-Paul changed; nobody was reelected."
    )


def test_headers_footers_and_page_numbers_go_and_numbers_in_the_text_stay(opened: Open, tmp_path: Path) -> None:
    lines = [[*prose(15, number), "1984 was a year.", *prose(15, number + 20)] for number in range(8)]
    pages = [column([f"{number + 11}   The Book of Nothing", *page, "Publisher, all rights reserved", str(number + 1)]) for number, page in enumerate(lines)]
    text = texts(opened, tmp_path, *pages)
    assert "Book" not in text and "Publisher" not in text
    assert text.count("1984 was a year.") == 8
    assert " ".join(text.split()).count(" ".join(prose(15, 3))) == 1
    assert not any(line.strip().isdigit() for line in text.split("\n"))


def test_a_header_is_told_on_the_last_pages_too(opened: Open, tmp_path: Path) -> None:
    pages = [column(["The Book of Nothing", *prose(12, number)]) for number in range(PAGES + 2)]
    assert "Book" not in texts(opened, tmp_path, *pages)


def test_pages_that_hold_nothing_but_what_repeats_keep_it(opened: Open, tmp_path: Path) -> None:
    assert "Chapter 7 of many" in texts(opened, tmp_path, *[column([f"Chapter {number} of many"]) for number in range(9)])


def test_a_paragraph_goes_on_over_the_end_of_a_page(opened: Open, tmp_path: Path) -> None:
    first, second = [*prose(20), "and this sentence does not end"], ["before the next page has come.", *prose(5, 1)]
    assert "does not end before the next page has come." in texts(opened, tmp_path, column(first), column(second))


def test_letters_are_normalised() -> None:
    page = "The e\ufb03cient o\ufb03ce\x00 \ufb01nds\ud800 a\xa0soft\xadhyphen\x07 and ba\xad\nnana"
    assert paragraphs([(1, page)]) == [("The efficient office finds a softhyphen and banana", 1)]


# Blocks


def test_blocks_are_even_and_the_same_in_any_order_and_after_a_restart(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "long.pdf").write_bytes(
        built([column([*prose(15, page), f"Page of {page + 1} begins.", *prose(15, page + 99)]) for page in range(2 * PAGES + 3)])
    )
    reader = opened(tmp_path)
    assert reader.blocks(0) == 3
    inorder = [reader.read(0, block) for block in range(3)]
    assert reader.read(0, 3) is None
    for block in (2, 0, 1):
        assert opened(tmp_path / "long.pdf").read(0, block) == inorder[block]
    documents = [document for block in inorder for document in block or []]
    assert all(len(document.text) <= 5000 for document in documents)
    text = "".join(document.text for document in documents)
    assert [text.count(f"Page of {page} begins.") for page in range(1, 2 * PAGES + 4)] == [1] * (2 * PAGES + 3)
    places = [int(document.place.removeprefix("long.pdf, page ")) for document in documents]
    assert places == sorted(places)
    assert all(
        f"Page of {page} begins." in document.text for page, document in zip(places, documents, strict=True) if document.text.startswith(prose(1, page - 1)[0])
    )


def test_thousands_of_pages_are_opened_at_once_and_read_from_anywhere(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "huge.pdf").write_bytes(built([column([f"It is page {page} that says a thing of its own, {page * page}."]) for page in range(3000)]))
    reader = opened(tmp_path)
    assert reader.blocks(0) == 94
    assert "It is page 2999 that says a thing of its own, 8994001." in reader.read(0, 93)[-1].text


# Files that hurt


def hostile() -> dict[str, tuple[bytes, str]]:
    """A file, and what is said of it."""
    good = built([column(prose(5))])
    catalog = b"<< /Type /Catalog /Pages 2 0 R >>"
    form = b"<< /Type /XObject /Subtype /Form /Resources << /XObject << /X 4 0 R >> >> /Length 12 >>\nstream\n/X Do /X Do \nendstream"
    page = b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /XObject << /X 4 0 R >> >> >>"
    broken, textless = "is no PDF, or a broken one", "holds no text (scanned?)"
    return {
        "bomb": (of_contents([b" " * 200_000_000], compress=True), "page 1 unpacks to more than a PDF of text would"),
        "cut": (good[:400], broken),
        "deep": (of_objects([catalog, b"<< /Type /Pages /Kids " + b"[" * 100_000 + b"]" * 100_000 + b" /Count 1 >>"]), broken),
        "empty": (b"", "is empty"),
        "forms": (of_objects([catalog, b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", page, form]), textless),
        "kids": (of_objects([catalog, b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"]), broken),
        "noise": (b"%PDF-1.7\n" + random.Random(1).randbytes(20_000), broken),
        "promises": (of_objects([catalog, b"<< /Type /Pages /Kids [3 0 R] /Count 2000000000 >>", b"<< /Type /Page /Parent 2 0 R >>"]), textless),
        "slow": (of_contents([b"BT /F1 10 Tf " + b"(a) Tj 0 1 Td " * 400_000 + b"ET"], compress=True), "page 1 takes more than 1 s"),
        "text": (b"Just a text. " * 100, broken),
    }


def test_files_that_hurt_are_named_once_and_cost_little(opened: Open, tmp_path: Path) -> None:
    for name, (content, _) in hostile().items():
        (tmp_path / f"{name}.pdf").write_bytes(content)
    (tmp_path / "zz_good.pdf").write_bytes(built([column(prose(5))]))
    reader = opened(tmp_path, QUICK)
    assert [document.place for document in everything(reader)] == ["zz_good.pdf, page 1"]
    assert reader.notices() == [f"{name}.pdf {said}; passed over" for name, (_, said) in hostile().items()]
    assert everything(reader)[0].text.startswith(prose(5)[0])
    assert reader.notices() == []


def test_a_page_that_takes_too_long_costs_itself_only(opened: Open, tmp_path: Path) -> None:
    slow = b"BT /F1 10 Tf " + b"(a) Tj 0 1 Td " * 400_000 + b"ET"
    (tmp_path / "mixed.pdf").write_bytes(of_contents([b"BT /F1 10 Tf (First words.) Tj ET", slow, b"BT /F1 10 Tf (Last words.) Tj ET"]))
    reader = opened(tmp_path, QUICK)
    assert reader.blocks(0) == 1
    first_worker = reader._process._worker
    assert reader.read(0, 0)[0].text == "First words.\n\nLast words."
    assert reader.notices() == ["mixed.pdf page 2 takes more than 1 s; passed over"]
    assert first_worker.returncode == -signal.SIGXCPU  # by the time of the processor, long before that of the wall


def test_memory_is_bounded(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "greedy.pdf").write_bytes(of_contents([b"BT /F1 10 Tf " + b"(a) Tj 0 1 Td " * 500_000 + b"ET"], compress=True))
    reader = opened(tmp_path, Limits(seconds=20, memory=150 << 20))
    assert not reader.read(0, 0)
    assert reader.notices() == ["greedy.pdf page 1 needs more memory than a PDF may; passed over"]


# The worker


def workers() -> list[psutil.Process]:
    alive = [process for process in psutil.Process().children() if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process in alive if "data_sources.pdf_worker" in process.cmdline()]


def test_a_worker_killed_between_and_within_files_changes_nothing(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / f"{name}.pdf").write_bytes(built([column(prose(45, page)) for page in range(PAGES)]))
    expected = everything(opened(tmp_path))
    reader = opened(tmp_path)
    assert list(reader.read(0, 0) or ()) == expected[: len(expected) // 2]
    reader._process._worker.kill()
    assert reader.blocks(1) == 1
    answers, process = iter(range(10**6)), reader._process
    killed, answer = process._worker, process._answer

    def killing_at_the_fifth() -> dict[str, Any]:
        if next(answers) == 5:
            killed.kill()
        return answer()

    monkeypatch.setattr(process, "_answer", killing_at_the_fifth)
    assert list(reader.read(1, 0) or ()) == expected[len(expected) // 2 :]
    assert killed.returncode == -signal.SIGKILL
    assert reader.notices() == []


def test_a_reader_closes_twice_and_reads_again(opened: Open) -> None:
    reader = opened(SAMPLES / "pdflatex-outline.pdf")
    before = everything(reader)
    assert [os.getsid(worker.pid) == os.getsid(0) for worker in workers()] == [False]  # out of reach of the terminal's Ctrl-C
    reader.close()
    reader.close()
    assert workers() == []
    assert everything(reader) == before


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib, signal
        from data_sources.pdf import PdfFiles
        reader = PdfFiles(pathlib.Path({str(SAMPLES / "multilang.pdf")!r}))
        reader.read(0, 0)
        print(reader._process._worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(done.stdout)) and psutil.Process(int(done.stdout)).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(int(done.stdout)) or psutil.Process(int(done.stdout)).status() == psutil.STATUS_ZOMBIE


def test_a_fork_does_not_share_the_worker(opened: Open, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.pdf").write_bytes(built([column([*prose(5), f"It is {name}."])]))
    reader = opened(tmp_path)
    assert reader.blocks(0) == reader.blocks(1) == 1
    child = os.fork()
    found = [document.text.endswith(f"It is {'ba'[child == 0]}.") for _ in range(100) for document in reader.read(int(child != 0), 0) or []]
    if child == 0:
        os._exit(found != [True] * 100)
    assert found == [True] * 100
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Folders


def test_folders_are_read_all_the_way_down_and_in_loops_only_once(opened: Open, tmp_path: Path) -> None:
    deep = tmp_path / "b" / "/".join("cdefghij")
    deep.mkdir(parents=True)
    for path in (tmp_path / "z.PDF", deep / "x.pdf", tmp_path / "b/notes.txt"):
        path.write_bytes(built([column(prose(5))]))
    (deep / "back").symlink_to(tmp_path)
    (tmp_path / "gone.pdf").symlink_to(tmp_path / "nowhere")
    reader = opened(tmp_path)
    assert reader.shards() == ["b/c/d/e/f/g/h/i/j/x.pdf", "gone.pdf", "z.PDF"]
    assert len(everything(reader)) == 2 and reader.notices() == ["gone.pdf is no file; passed over"]


@pytest.mark.parametrize(
    ("files", "path", "said"),
    [
        ({}, "", "holds no PDF"),
        ({}, "missing", "there is no .*missing; make it"),
        ({"a.pdf": b"", "b.pdf": b"text"}, "", r"none of its 2 PDFs can be read; the last: b.pdf is no PDF, or a broken one; passed over"),
        ({"a.pdf": b""}, "a.pdf", "^a.pdf is empty; passed over$"),
    ],
)
def test_a_source_without_text_is_given_up_in_a_line(opened: Open, tmp_path: Path, files: dict[str, bytes], path: str, said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(GivenUp, match=said) as given_up:
        everything(opened(tmp_path / path))
    assert "\n" not in str(given_up.value)
