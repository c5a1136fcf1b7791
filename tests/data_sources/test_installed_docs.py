"""The documentation of the installed packages: what is taken, in which order, and the fast reading of docstrings against the syntax tree."""

import itertools
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from data_sources.docstrings import Docstring, docstrings, parsed
from data_sources.documents import Document
from data_sources.installed_docs import InstalledDocs, package_folders

PROSE = "It explains at some length what the thing is for, and what becomes of it in the end."


@pytest.fixture(scope="module")
def reader() -> InstalledDocs:
    return InstalledDocs()


def text_of(reader: InstalledDocs, name: str) -> str:
    return "\n\n".join(document.text for document in reader.read(reader.shards().index(name), 0) or [])


def only(folder: Path) -> list[Document]:
    reader = InstalledDocs([folder])
    return [document for shard in range(len(reader.shards())) for document in reader.read(shard, 0) or []]


def test_docstrings_stand_below_their_signatures(reader: InstalledDocs) -> None:
    text = text_of(reader, "textwrap.py")
    assert text.startswith("textwrap\n\nText wrapping and filling.")
    assert "def dedent(text)\nRemove any common leading whitespace from every line in `text`." in text


def test_the_language_reference_and_package_descriptions_are_read(reader: InstalledDocs) -> None:
    assert "Assert statements are a convenient way to insert debugging assertions into a program" in " ".join(text_of(reader, "pydoc_data/topics.py").split())
    description = next(name for name in reader.shards() if name.startswith("pypdf-") and name.endswith("METADATA"))
    text = text_of(reader, description)
    assert "pypdf is a free and open-source pure-python PDF library" in text
    assert "Metadata-Version" not in text and "img.shields.io" not in text


def test_there_are_megabytes_of_prose(reader: InstalledDocs) -> None:
    size = sum(len(document.text) for shard in range(0, len(reader.shards()), 20) for document in reader.read(shard, 0) or [])
    assert size > 500_000


def test_a_block_is_one_file_in_chunks(reader: InstalledDocs) -> None:
    shard = reader.shards().index("typing.py")
    documents = reader.read(shard, 0)
    assert reader.blocks(shard) == 1
    assert reader.read(shard, 1) is None
    assert list(documents.places[:2]) == [f"{reader.shards()[shard]}, part {part}" for part in (1, 2)]
    assert all(len(document.text) <= 5000 for document in documents)


def test_the_same_packages_elsewhere_have_the_same_names(tmp_path: Path) -> None:
    for home in ("one", "two/deeper"):
        shutil.copytree(Path(pytest.__file__).parent, tmp_path / home / "pytest")
    one, two = InstalledDocs([tmp_path / "one"]), InstalledDocs([tmp_path / "two/deeper"])
    assert one.shards() == two.shards() == sorted(one.shards())
    assert all(one.read(shard, 0) == two.read(shard, 0) for shard in range(len(one.shards())))


def test_the_project_itself_is_not_read(reader: InstalledDocs) -> None:
    project = Path(__file__).resolve().parents[2]
    assert project not in [folder.resolve() for folder in package_folders()]
    assert not any(name.startswith("data_sources/") for name in reader.shards())


def test_what_teaches_nothing_is_passed_over(tmp_path: Path) -> None:
    for folder in ("package", "package/tests", "package/_vendor", "package/__pycache__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").write_text(f'"""{PROSE} {folder}"""')
    (tmp_path / "package/table.py").write_text('"""' + "0.123 | 4.56e-7 | 89 %\n" * 20 + '"""')
    (tmp_path / "package/short.py").write_text('"""A stub."""')
    assert [document.place for document in only(tmp_path)] == ["package/module.py"]


def test_markup_of_a_readme_goes_and_its_words_stay(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        f"# Title\n[![build](https://a/b.svg)](https://c)\n<p align='center'> <img src='a.png'> </p>\n<!-- hidden -->\n{PROSE}\n"
    )
    assert only(tmp_path)[0].text == f"# Title\n{PROSE}"


def test_broken_files_are_passed_over_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    contents = {
        "nul.py": b'"""x\0"""\n\'\'\'' + PROSE.encode() + b"'''",
        "syntax.py": b"def (:\n    '''" + PROSE.encode() + b"'''",
        "deep.py": b"'''" + PROSE.encode() + b"'''\nx = " + b"(" * 50_000,
        "long.py": b"'''" + PROSE.encode() + b"'''\nx = " + b"-" * 100_000 + b"1",
        "latin.py": b"# coding: latin-1\n'''caf\xe9 " + PROSE.encode() + b"'''",
        "escape.py": b"'''\\d " + PROSE.encode() + b"'''\nx = '\\d'\n",
        "odd.py": b'"""\\d ' + PROSE.encode() + b'"""\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = {document.place: document.text for document in only(tmp_path)}
    assert sorted(texts) == ["escape.py", "latin.py", "odd.py"]
    assert texts["latin.py"] == f"latin\n\ncafé {PROSE}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_every_kind_of_docstring(quotes: str) -> None:
    source = f"""# a comment
{quotes}Of the module.{quotes}
class A(B[int], metaclass=(M)):  # why
    r{quotes}Of \\d class.{quotes}
    async def method(
        self, x: dict[str, tuple[int, ...]] = f(1, (2)),
    ) -> "A":

        # a comment: with a colon
        {quotes}Of the
        method.\\n{quotes}
        query = {quotes}no docstring{quotes}
        def inner(): {quotes}Of the inner one.{quotes}
if x:
    def g(a): return {quotes}none either{quotes}
""".encode()
    expected = [
        Docstring("", "Of the module."),
        Docstring("class A(B[int], metaclass=(M))", "Of \\d class."),
        Docstring('async def method(self, x: dict[str, tuple[int, ...]] = f(1, (2))) -> "A"', "Of the\nmethod."),
        Docstring("def inner()", "Of the inner one."),
    ]
    assert docstrings(source) == parsed(source) == expected


@pytest.mark.slow
def test_the_fast_reading_agrees_with_the_syntax_tree_on_installed_files() -> None:
    """It may miss what stands in single quotes, and finds nothing that isn't there."""
    files = sorted(path for folder in package_folders() for path in itertools.islice(sorted(folder.rglob("*.py")), 0, 20_000, 60))
    slow, fast = 0, 0
    for path in files:
        source = path.read_bytes()
        expected, found = parsed(source), docstrings(source)
        assert set(found) <= set(expected), path
        slow, fast = slow + len(expected), fast + len(found)
    assert slow > 1000
    assert fast > 0.97 * slow


def test_nothing_is_imported() -> None:
    code = "import sys; from data_sources.installed_docs import InstalledDocs; r = InstalledDocs(); [r.read(i, 0) for i in range(300)]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout.split()
    assert not {"torch", "transformers", "accelerate", "numpy"} & set(loaded)
