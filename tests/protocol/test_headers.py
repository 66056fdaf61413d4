"""The header block as bytes: found, read, changed and written so that every reader sees the same."""

import email
import email.policy
import time
from email.header import decode_header, make_header
from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import InvalidInput
from posthouse.model.address import NamedAddress, parse_address, parse_header_addresses
from posthouse.protocol.headers import (
    HeaderTooLong,
    LineFaults,
    check_field_name,
    check_field_value,
    decode_for_people,
    encode_unstructured,
    fields_of,
    find_line_faults,
    fold,
    fold_long_header_lines,
    format_address,
    normalise_line_ends,
    put_in_front,
    remove_fields,
    scan,
    split,
    write_addresses,
)

# --- finding and reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "header", "body"),
    [
        (b"A: b\r\n\r\nhi\r\n", b"A: b\r\n", b"hi\r\n"),
        (b"A: b\r\n c\r\n\td\r\nE:f\r\n\r\n\r\nhi", b"A: b\r\n c\r\n\td\r\nE:f\r\n", b"\r\nhi"),
        (b"A: b\r\n", b"A: b\r\n", b""),
        (b"A: b\r\n\r\n", b"A: b\r\n", b""),
        (b"A: b", b"A: b\r\n", b""),
        (b"A : b\r\n\r\nhi", b"A : b\r\n", b"hi"),
        (b"\r\nhi", b"", b"hi"),
        (b"", b"", b""),
        # Devices send text alone, or forget the empty line: what is no field begins the body.
        (b"hello world\r\nA: b\r\n\r\nhi", b"", b"hello world\r\nA: b\r\n\r\nhi"),
        (b"A: b\r\nhello\r\nC: d\r\n\r\nhi", b"A: b\r\n", b"hello\r\nC: d\r\n\r\nhi"),
        (b" A: b\r\n\r\nhi", b"", b" A: b\r\n\r\nhi"),
        (b"A\xff: b\r\n\r\nhi", b"", b"A\xff: b\r\n\r\nhi"),
        (b"From joe Mon Nov  2\r\nA: b\r\n\r\nhi", b"A: b\r\n", b"hi"),
    ],
)
def test_a_message_parts_where_its_fields_end(raw: bytes, header: bytes, body: bytes) -> None:
    assert split(raw) == (header, body)
    # With an empty line between, it parts there again, and so does the next reader.
    assert split(header + b"\r\n" + body) == (header, body)


@given(
    st.lists(
        st.sampled_from([b"A: b", b"hello", b"", b" c", b"From: x", b"A", b":", b"x y: z", b"\xff: y"]), max_size=8
    )
)
def test_parted_and_joined_again_a_second_parser_sees_the_same_header(lines: list[bytes]) -> None:
    header, body = split(b"\r\n".join(lines) + b"\r\n")
    parsed = email.message_from_bytes(header + b"\r\n" + body, policy=email.policy.compat32)
    assert [name.encode() for name in parsed] == [name.rstrip() for name, _ in fields_of(header)]


def test_the_facts_of_a_header_are_read() -> None:
    facts = scan(
        b"Received: a\r\n\tb\r\nRECEIVED: c\r\nMessage-Id:\r\n <a@b>\r\nDate: Mon\r\n"
        b"From: Joe <joe@x>\r\nSender: s@x\r\nto: a@x,\r\n b@y\r\nTo: c@z\r\nCC: d@z\r\nbcc:\r\n"
        b"Subject : hi\r\nReply-To: r@x\r\n"
        b'Content-Type: Multipart/Signed (really); boundary="x"\r\nAuto-Submitted: Auto-Replied; x=y\r\n'
    )
    assert facts.message_id == "<a@b>"
    assert facts.has_date
    assert (facts.from_value, facts.from_count) == (b" Joe <joe@x>", 1)
    assert (facts.sender_value, facts.reply_to_value) == (b" s@x", b" r@x")
    assert facts.to_values == [b" a@x,\r\n b@y", b" c@z"]
    assert facts.cc_values == [b" d@z"]
    assert (facts.has_bcc, facts.bcc_values) == (True, [b""])
    assert facts.subject == b" hi"
    assert facts.received_count == 2
    assert (facts.content_type, facts.is_signed) == ("multipart/signed", True)
    assert facts.auto_submitted == "auto-replied"
    assert (facts.is_ascii, facts.longest_line, facts.malformed_lines) == (True, 53, 0)
    assert facts.duplicates == ("to",)


def test_the_facts_of_an_empty_header_are_nothing() -> None:
    facts = scan(b"")
    assert (facts.message_id, facts.has_date, facts.from_value, facts.longest_line) == (None, False, None, 0)
    assert scan(b"Message-ID: \r\nDate:\r\n").message_id is None
    assert not scan(b"Message-ID: \r\nDate:\r\n").has_date


@pytest.mark.parametrize(
    "header",
    [
        b"From: a@x\r\nFrom: b@y\r\n",
        b"From: a@x\r\nFROM :b@y\r\n",
        b"From: a@x\r\nfrom\t:\r\n b@y\r\n",
        b"From: a\r\nFrom:\r\n",
    ],
)
def test_a_second_from_is_counted_however_it_is_written(header: bytes) -> None:
    facts = scan(header)
    assert (facts.from_count, facts.duplicates) == (2, ("from",))


def test_odd_headers_are_described() -> None:
    facts = scan(b"A: b\r\nno colon here\r\n with more\r\nX-Y: \xc3\xa4\r\n")
    assert (facts.malformed_lines, facts.is_ascii) == (1, False)
    assert scan(b"A: b\r\nX: " + b"x" * 2000 + b"\r\n").longest_line == 2003


@pytest.mark.parametrize(
    ("header", "signed"),
    [
        (b"Content-Type: multipart/signed; x=y\r\n", True),
        (b"Content-Type: MULTIPART/ENCRYPTED\r\n", True),
        (b"Content-Type:application/pkcs7-mime\r\n", True),
        (b"Content-Type:\r\n application/x-pkcs7-mime;\r\n name=x\r\n", True),
        (b"Content-Type: application/pgp-encrypted\r\n", True),
        (b"Content-Type: text/plain\r\nContent-Type: multipart/signed\r\n", True),
        (b"Content-Type: multipart/mixed\r\n", False),
        (b'Content-Type: text/plain; x="multipart/signed"\r\n', False),
    ],
)
def test_sealed_content_is_recognised(header: bytes, signed: bool) -> None:
    assert scan(header).is_signed is signed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b" hello\r\n there ", "hello there"),
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?= =?utf-8?b?IQ==?= x", "Grüße! x"),
        ("Grüße".encode(), "Grüße"),
        (b"Gr\xfc\xdfe", "Grüße"),
        (b"=?iso-8859-1*de?q?Gr=FC=DFe?=", "Grüße"),
        (b"=?x-nobody-knows?q?a=FFb?=", "a\ufffdb"),
        (b"=?utf-8?b?!!!?=", ""),
        (b"=?utf-8?q?a=0D=0ABcc:_x?=", "a\ufffd\ufffdBcc: x"),
        (b"a\x1b[2J\0", "a\ufffd[2J\ufffd"),
        ("a\u202eb".encode(), "a\ufffdb"),
        (b"=?unicode_escape?q?=5Cx41?=", "\\x41"),
        (b"x" * 100_000, "x" * 997 + "…"),
    ],
)
def test_a_subject_is_shown_as_people_read_it(value: bytes, shown: str) -> None:
    assert decode_for_people(value) == shown


@given(st.binary(max_size=200) | st.text(alphabet="=?utf-8bBqQ_/ü \r\n", max_size=80).map(str.encode))
def test_showing_a_subject_never_fails_and_never_breaks_a_line(value: bytes) -> None:
    shown = decode_for_people(value)
    assert shown.isprintable() or not set(shown) & set("\r\n\0\x1b\x85\u2028\u2029\u202e")


# --- line ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"a\r\nb\r\n", LineFaults()),
        (b"", LineFaults()),
        (b"a\nb", LineFaults(0, 1, 0)),
        (b"a\rb", LineFaults(1, 0, 0)),
        (b"\n\r", LineFaults(1, 1, 0)),
        (b"\r\r\n", LineFaults(1, 0, 0)),
        (b"\r\n\n", LineFaults(0, 1, 0)),
        (b"\r\n.\n", LineFaults(0, 1, 0)),
        (b"\n.\r\n", LineFaults(0, 1, 0)),
        (b"\r.\r", LineFaults(2, 0, 0)),
        (b"a\0b", LineFaults(0, 0, 1)),
    ],
)
def test_what_a_lenient_reader_takes_for_a_line_end_is_counted(content: bytes, faults: LineFaults) -> None:
    assert find_line_faults(content) == faults
    assert bool(faults) == (faults != LineFaults())


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a"]), max_size=30).map(b"".join))
def test_normalised_content_has_crlf_alone_and_the_same_lines(content: bytes) -> None:
    normalised = normalise_line_ends(content)
    assert not find_line_faults(normalised)
    assert normalise_line_ends(normalised) == normalised
    assert normalised.split(b"\r\n") == content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


# --- changing ---------------------------------------------------------------------------------------------------------


def test_bcc_goes_in_any_case_and_with_all_its_lines() -> None:
    header = b"BCC: a@x,\r\n b@y\r\nX-Bcc: keep\r\nbcc :\r\n\tc@z\r\nSubject: x\r\n Bcc: keep\r\nResent-Bcc: d@z\r\n"
    assert remove_fields(header, ("Bcc", "Resent-Bcc")) == b"X-Bcc: keep\r\nSubject: x\r\n Bcc: keep\r\n"


def test_fields_go_in_front_whole_or_not_at_all() -> None:
    assert put_in_front(b"B: c\r\n", b"A: b\r\n") == b"A: b\r\nB: c\r\n"
    for fields in (b"A: b", b"", b" A: b\r\n", b"\r\n"):
        with pytest.raises(ValueError, match="put in front"):
            put_in_front(b"B: c\r\n", fields)


def lines(content: bytes) -> int:
    return max(map(len, content.split(b"\r\n")))


def test_short_headers_stay_as_they_are() -> None:
    header = b"A: " + b"x" * 995 + b"\r\nB: " + b"y " * 497 + b"y\r\n"
    assert fold_long_header_lines(header) == header


def test_long_lines_are_folded_at_white_space_and_unfold_to_the_same() -> None:
    header = b"A: b\r\nX-Long: " + b"word  word\t" * 500 + b"end\r\nSubject: c\r\n"
    folded = fold_long_header_lines(header)
    assert lines(folded) <= 998
    assert folded.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t") == header
    assert not [line for line in folded.split(b"\r\n")[:-1] if not line.strip()]


def test_long_address_lists_without_spaces_are_folded_after_commas() -> None:
    addresses = [f"name{number}@host{number}.example" for number in range(300)]
    header = ("To: " + ",".join(addresses) + ',"a,b" <z@x>\r\n').encode()
    folded = fold_long_header_lines(header)
    assert lines(folded) <= 998
    assert b'"a,b" <z@x>' in folded
    read = parse_header_addresses(folded.partition(b":")[2])
    assert [str(named.address) for named in read] == [*addresses, "z@x"]


def test_a_subject_without_spaces_is_encoded_and_reads_the_same() -> None:
    folded = fold_long_header_lines(b"Subject: " + b"x" * 3000 + "ü".encode() + b"\r\n")
    assert lines(folded) <= 78
    parsed = email.message_from_bytes(folded + b"\r\n")
    assert str(make_header(decode_header(parsed["Subject"]))) == "x" * 3000 + "ü"


@pytest.mark.parametrize("header", [b"References: <" + b"x" * 1000 + b">\r\n", b"To: " + b"x" * 1000 + b"\r\n"])
def test_a_field_that_cannot_be_folded_is_named(header: bytes) -> None:
    with pytest.raises(HeaderTooLong, match=header.partition(b":")[0].decode()):
        fold_long_header_lines(header)


# --- writing ----------------------------------------------------------------------------------------------------------

LINE_ENDS = [
    "\r",
    "\n",
    "\r\n",
    "\0",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\x7f",
    "\ud800",
]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_no_value_ends_its_line(end: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_field_value("headers.X-Foo", f"a{end}Bcc: eve@example.net")
    assert caught.value.field == "headers.X-Foo"
    assert "eve" not in str(caught.value)
    with pytest.raises(ValueError):
        fold("X-Foo", f"a{end}Bcc: eve@example.net")
    with pytest.raises(ValueError):
        format_address(parse_address("a@x"), f"a{end}Bcc: eve@example.net")


@pytest.mark.parametrize("name", ["", "X Foo", "X:Foo", "X\r\nFoo", "Xü", "X" * 77, "\0"])
def test_no_name_ends_its_line(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_field_name("headers", name)
    with pytest.raises(ValueError):
        fold(name, "x")


VISIBLE = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=150)
TRICKY = st.text('ab=?utf-8qQbB_ ü"\\<>@,;:().', max_size=150)


@given(VISIBLE | TRICKY)
def test_unstructured_text_reads_the_same_at_a_second_parser(text: str) -> None:
    text = text.strip()
    field = fold("Subject", encode_unstructured(text, "Subject"))
    assert field.isascii() and lines(field) <= 998
    assert all(len(line) <= 78 for line in field.split(b"\r\n") if b"=?utf-8?" in line)
    parsed = email.message_from_bytes(field + b"X-Next: 1\r\n\r\n")
    assert list(parsed) == ["Subject", "X-Next"]
    unfolded = parsed["Subject"].replace("\r\n", "").replace("\n", "")
    assert str(make_header(decode_header(unfolded))).split() == text.split()
    assert decode_for_people(field.partition(b":")[2]) == text or len(text) > 900 or not text.isprintable()


@given(VISIBLE | TRICKY)
def test_a_display_name_reads_the_same_and_hides_no_address(name: str) -> None:
    address = parse_address("joe@example.org")
    field = write_addresses("To", [NamedAddress(address, name), NamedAddress(parse_address("ann@example.net"))])
    parsed = email.message_from_bytes(field + b"X-Next: 1\r\n\r\n")
    assert list(parsed) == ["To", "X-Next"]
    pairs = getaddresses([parsed["To"].replace("\r\n", "").replace("\n", "")])
    assert [spec for _, spec in pairs] == ["joe@example.org", "ann@example.net"]
    assert str(make_header(decode_header(pairs[0][0]))).split() == name.split()
    assert b"joe@example.org" in field and lines(field) <= 998


def test_an_address_is_never_split_however_long_it_is() -> None:
    local, host = "l" * 64, ".".join(["h" * 60] * 3)
    addresses = [NamedAddress(parse_address(f"{local}@{host}"), "Jürgen " * 20)] * 3
    field = write_addresses("To", addresses)
    assert field.count(f"<{local}@{host}>".encode()) == 3
    assert lines(field) <= 998


@pytest.mark.parametrize(
    ("address", "name", "written"),
    [
        ("a@x", "", "a@x"),
        ("a@x", "Joe Doe", "Joe Doe <a@x>"),
        ("a@x", "Doe, Joe", '"Doe, Joe" <a@x>'),
        ("a@x", 'a"b\\c', '"a\\"b\\\\c" <a@x>'),
        ("a@x", "Jürgen", "=?utf-8?q?J=C3=BCrgen?= <a@x>"),
        ("a@x", "=?utf-8?q?x?=", "=?utf-8?b?PT91dGYtOD9xP3g/PQ==?= <a@x>"),
        ("a@bücher.example", "", "a@xn--bcher-kva.example"),
        ("山@x", "山", "=?utf-8?b?5bGx?= <山@x>"),
    ],
)
def test_an_address_is_written_as_it_needs(address: str, name: str, written: str) -> None:
    assert format_address(parse_address(address), name).decode() == written


@pytest.mark.parametrize(
    "raw",
    [
        b"A: b\r\n" * 200_000,
        b"A: b\r\n" + b" c\r\n" * 200_000,
        b":" * 1_000_000,
        b"A" * 1_000_000,
        b"To: " + b"," * 1_000_000 + b"\r\n",
        b"To: " + b'"' * 1_000_000 + b"\r\n",
        b"Subject: " + b"=?utf-8?q?" * 100_000 + b"\r\n",
        b"X-A: " + b" " * 1_000_000 + b"x\r\n",
    ],
)
def test_hostile_headers_cost_linear_time(raw: bytes) -> None:
    started = time.perf_counter()
    header, _ = split(raw)
    facts = scan(header)
    remove_fields(header, ("Bcc",))
    decode_for_people(facts.subject or b"")
    try:
        fold_long_header_lines(header)
    except HeaderTooLong:
        assert facts.longest_line > 998
    assert time.perf_counter() - started < 10
