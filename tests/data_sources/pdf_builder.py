"""PDFs made byte by byte, so that a test can say where each line stands and what is wrong with the file."""

import zlib
from collections.abc import Sequence

FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
Placed = tuple[int, int, str]  # x, y from the lower left, a line of text


def built(pages: Sequence[Sequence[Placed]]) -> bytes:
    """A PDF of A4 pages whose lines are drawn in the order given."""
    return of_contents([_drawn(page) for page in pages])


def of_contents(contents: Sequence[bytes], compress: bool = False) -> bytes:
    """A PDF of pages with these content streams."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", FONT]
    kids = []
    for content in contents:
        data, filter = (zlib.compress(content, 9), b" /Filter /FlateDecode") if compress else (content, b"")
        objects.append(b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(data), filter, data))
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % len(objects))
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    return of_objects(objects)


def of_objects(objects: Sequence[bytes]) -> bytes:
    """A file of numbered objects, the first of which is the catalog."""
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, table, size, len(out))


def column(lines: Sequence[str], x: int = 60, top: int = 780) -> list[Placed]:
    """Lines one below the other."""
    return [(x, top - 14 * index, line) for index, line in enumerate(lines)]


def _drawn(page: Sequence[Placed]) -> bytes:
    shown = [b"1 0 0 1 %d %d Tm (%s) Tj" % (x, y, _escaped(text)) for x, y, text in page]
    return b"BT /F1 10 Tf " + b"\n".join(shown) + b" ET"


def _escaped(text: str) -> bytes:
    return text.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
