"""Text comes out of files as people would read it; what is no text is refused by name, with what to do."""

from __future__ import annotations

import sys

import pytest

from nsllm.cli.errors import FileError
from nsllm.cli.extracting import extract, read_file


def text_of(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return extract(path, read_file(path))


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", "One.\r\n\r\nTwo.\n", "One.\n\nTwo."),
        ("a.md", "# Title\n\n* one\n", "# Title\n\n* one"),
        ("README", "no suffix", "no suffix"),
        ("bom.txt", b"\xef\xbb\xbfOne.", "One."),
        ("wide.txt", "Größe".encode("utf-16"), "Größe"),
        (
            "a.html",
            (
                "<html><head><title>T</title><style>p {}</style></head><body><h1>Big</h1><p>One <b>two</b>\n three"
                " &amp; four.</p><script>x()</script><ul><li>five<li>six</ul></body>"
            ),
            "T\n\nBig\n\nOne two three & four.\n\nfive\n\nsix",
        ),
        ("a.csv", "name,year\nAldern,1871\nHolm,\n", "name: Aldern; year: 1871\nname: Holm"),
        ("a.tsv", "name\tyear\nAldern\t1871\n", "name: Aldern; year: 1871"),
        ("semi.csv", 'name;note\nAldern;"granite; old"\n', "name: Aldern; note: granite; old"),
        ("a.json", '[{"a": {"b": [1, true]}, "c": null}, {"d": "x"}]', "a.b[0]: 1\na.b[1]: true\n\nd: x"),
        ("b.json", '{"name": "Aldern", "empty": ""}', "name: Aldern"),
        ("half.json", r'{"name": "Ald\ud800ern"}', "name: Ald?ern"),
    ],
)
def test_text_comes_out(tmp_path, name, data, text) -> None:
    assert text_of(tmp_path, name, data) == text


def test_tags_that_never_end_cost_no_time(tmp_path) -> None:
    text = text_of(tmp_path, "open.html", "<p>One.</p>" + "<div" * 100_000)
    assert text.startswith("One.")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("junk.bin", bytes(range(256)), "not text in UTF-8"),
        ("zeros.txt", b"\0" * 100, "control characters"),
        ("latin.txt", "Größe".encode("latin-1"), "not text in UTF-8 (byte 2)"),
        ("odd.txt", b"\xff\xfea", "not text in UTF-16"),
        ("blank.txt", b" \n\n ", "holds no text"),
        ("empty.txt", b"", "is empty"),
        ("bad.json", b"{", "is no JSON"),
        ("deep.json", b"[" * 100_000, "JSON|nested too deep"),
        ("nul.json", rb'["\u0000 hello"]', "control characters"),
        ("bad.csv", b"a,b\n1,2,3\n", "row 2"),
        ("quote.csv", b'a,b\n"1,2\n', "is no CSV"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, data, said) -> None:
    with pytest.raises(FileError) as caught:
        text_of(tmp_path, name, data)
    assert any(part in caught.value.message for part in said.split("|"))
    assert name in caught.value.message


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileError, match=r"cannot read .*nothing\.txt: No such file"):
        read_file(tmp_path / "nothing.txt")
    with pytest.raises(FileError, match="is a folder"):
        read_file(tmp_path)
    monkeypatch.setattr("nsllm.cli.extracting.MAX_FILE_BYTES", 3)
    with pytest.raises(FileError, match="has 4 bytes, the limit is 3"):
        text_of(tmp_path, "large.txt", "abcd")


def test_a_pdf_without_its_reader_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(FileError) as caught:
        text_of(tmp_path, "a.pdf", b"%PDF-1.4 ...")
    assert "nsllm[documents]" in caught.value.hint


def pdf(text: str) -> bytes:
    """A minimal PDF of one page, as the specification (ISO 32000-1, annex H.2) has it."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources <</Font <</F1 5 0 R>> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(body)
    return body + b"xref\n0 6\n0000000000 65535 f \n" + table + end


def test_text_of_a_pdf(tmp_path) -> None:
    pytest.importorskip("pypdf", reason="the extra `documents` is not installed")
    assert text_of(tmp_path, "a.pdf", pdf("The lighthouse of Aldern")) == "The lighthouse of Aldern"
    with pytest.raises(FileError, match="damaged PDF"):
        text_of(tmp_path, "b.pdf", b"%PDF-1.4 nothing else")
    with pytest.raises(FileError, match="holds no text"):
        text_of(tmp_path, "c.pdf", pdf(""))
