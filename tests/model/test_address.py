"""Addresses, domains, hosts and allow-lists: what is read, what is refused, and what is the same."""

import time
from contextlib import suppress
from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.model.address import (
    Address,
    AddressFault,
    AddressSet,
    check_host,
    fast_ascii_address,
    matches,
    normalise_entry,
    parse_address,
    parse_domain,
    parse_header_addresses,
)

# --- one address ------------------------------------------------------------------------------------------------------

STRICT = [
    ("joe@example.org", "joe@example.org"),
    ("Joe.Doe+tag@Example.ORG", "joe.doe+tag@example.org"),
    ("root@localhost", "root@localhost"),
    ("scan@mfp01", "scan@mfp01"),
    ("a@x-y.example", "a@x-y.example"),
    ("!#$%&'*+/=?^_`{|}~-@x", "!#$%&'*+/=?^_`{|}~-@x"),
    ('"joe doe"@example.org', "joe doe@example.org"),
    ('"a\\"b"@example.org', 'a"b@example.org'),
    ('"joe"@example.org', "joe@example.org"),
    ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("a@[IPv6:2001:DB8:0::1]", "a@[ipv6:2001:db8::1]"),
    ("山田太郎@株式.会社", "山田太郎@xn--w0tp6r.xn--6oq404h"),
    ("joe@faß.example", "joe@xn--fa-hia.example"),
    ("joe@BÜCHER.example", "joe@xn--bcher-kva.example"),
    ("joe@ｅxample.org", "joe@example.org"),
    ("JO\u0308E@example.org", "jöe@example.org"),
    ("a" * 64 + "@example.org", "a" * 64 + "@example.org"),
]


@pytest.mark.parametrize(("text", "key"), STRICT)
def test_a_strict_address_is_read_and_compared(text: str, key: str) -> None:
    address = parse_address(text)
    assert address.key == key
    assert parse_address(text, lenient=True) == address
    assert parse_address(str(address)) == address


LENIENT = [
    (" joe@example.org\t", "joe@example.org", "joe@example.org"),
    ("john..doe@example.org", "john..doe@example.org", "john..doe@example.org"),
    (".joe@example.org", ".joe@example.org", ".joe@example.org"),
    ("joe.@example.org", "joe.@example.org", "joe.@example.org"),
    ("joe@example.org.", "joe@example.org", "joe@example.org"),
    ("joe@print_server", "joe@print_server", "joe@print_server"),
    ("a" * 65 + "@example.org", "a" * 65 + "@example.org", "a" * 65 + "@example.org"),
    ("joe(sales)@example.org", '"joe(sales)"@example.org', "joe(sales)@example.org"),
    ("joe[1]:x@example.org", '"joe[1]:x"@example.org', "joe[1]:x@example.org"),
]


@pytest.mark.parametrize(("text", "written", "key"), LENIENT)
def test_lenient_takes_what_strict_refuses_and_writes_it_safely(text: str, written: str, key: str) -> None:
    with pytest.raises(AddressFault):
        parse_address(text)
    address = parse_address(text, lenient=True)
    assert (str(address), address.key) == (written, key)


REFUSED = [
    "",
    "@",
    "joe",
    "joe@",
    "@example.org",
    "joe@@example.org",
    "a@b@example.org",
    "joe doe@example.org",
    "joe@exam ple.org",
    "joe@-example.org",
    "joe@example-.org",
    "joe@.example.org",
    "joe@example..org",
    "<joe@example.org>",
    "Joe <joe@example.org>",
    "joe@example.org (Joe)",
    "@relay:joe@example.org",
    "@relay,@b:joe@example.org",
    "a,b@example.org",
    "a;b@example.org",
    "a\\b@example.org",
    '"a"b@example.org',
    '"a@example.org',
    '"a\r\n"@example.org',
    '"a\\\r"@example.org',
    '"a\0"@example.org',
    "a@[192.0.2.256]",
    "a@[192.0.2.1",
    "a@[tag:content]",
    "a@[IPv6:fe80::1%eth0]",
    "joe@☃.example",
    "joe@ü..example",
    "joe@b＠c.ü",
    "joe@" + "x" * 64,
    "joe@" + "x." * 127 + "xx",
    "a" * 250 + "@example.org",
    "山" * 100 + "@example.org",
]
INJECTING = [
    "joe@example.org\r\nRCPT TO:<eve@example.net>",
    "joe@example.org\n",
    "\rjoe@example.org",
    "jo\0e@example.org",
    "joe@exam\tple.org",
    "joe@example.org>",
    "joe@example.org> SIZE=1",
    "joe@example.org\u2028",
    "jo\u2029e@example.org",
    "jo\u0085e@example.org",
    "jo\u202ee@example.org",
    "jo\u200be@example.org",
    "jo\u00ade@example.org",
    "jo\u00a0e@example.org",
    "jo\u3000e@example.org",
    "joe@ex\u200bample.org",
    "joe@ex\u202eample.org",
    "jo\ud800e@example.org",
    "jo\ufffde@example.org",
    "jo\ue000e@example.org",
    "jo\x7fe@example.org",
]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("text", [*REFUSED, *INJECTING])
def test_what_is_no_address_is_refused_without_repeating_it(text: str, lenient: bool) -> None:
    with pytest.raises(AddressFault) as caught:
        parse_address(text, lenient=lenient)
    assert len(text) < 8 or text not in str(caught.value)


ATOM = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=12)
LOCALS = st.lists(ATOM, min_size=1, max_size=4).map(".".join)
DOMAINS = st.lists(st.from_regex(r"[a-zA-Z0-9]{1,8}(-[a-z0-9]{1,4})?", fullmatch=True), min_size=1, max_size=4).map(
    ".".join
)


@given(LOCALS, DOMAINS)
def test_ordinary_addresses_take_the_short_way_and_read_the_same(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    assert fast_ascii_address(text)
    assert parse_address(text) == Address(local, domain)
    assert parse_address(text).key == text.lower()


@given(st.text(max_size=40) | st.text('ab@."\\<>()[]:;, \r\n\0\u2028ü', max_size=20), st.booleans())
def test_whatever_is_read_can_end_no_line_and_no_path(text: str, lenient: bool) -> None:
    try:
        address = parse_address(text, lenient=lenient)
    except AddressFault:
        return
    for form in (str(address), address.key, address.ascii_text):
        assert not set(form) & set("\r\n\0\t\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    assert not set("<> ") & set(address.domain)
    if not address.local.startswith('"'):
        assert not set('<>@(),;:\\"[] ') & set(address.local)
    assert address.ascii_domain.isascii()
    assert parse_address(str(address), lenient=lenient) == address


def test_a_long_input_is_refused_before_it_is_looked_at() -> None:
    started = time.perf_counter()
    for text in ("a" * 10_000_000, "a." * 500, "ü" * 1000 + "@x", "a@" + "ü." * 500):
        with pytest.raises(AddressFault):
            parse_address(text, lenient=True)
    assert time.perf_counter() - started < 1


# --- domains and hosts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Smtp.Example.org", "smtp.example.org"),
        ("smtp.example.org.", "smtp.example.org"),
        ("localhost", "localhost"),
        ("print_server", "print_server"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::1", "::1"),
    ],
)
def test_a_host_is_a_name_or_an_address(text: str, host: str) -> None:
    assert check_host(text) == host
    assert check_host(host) == host


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("smtp.example.org:25", "the port has its own field"),
        ("[::1]:25", "the port has its own field"),
        ("192.0.2.1:25", "the port has its own field"),
        ("smtp://smtp.example.org", "host name alone"),
        ("https://example.org/", "host name alone"),
        ("joe@example.org", "host name alone"),
        ("smtp example.org", "spaces"),
        ("smtp.example.org\r\nQUIT", "control characters"),
        ("\u2028", "spaces or control"),
        ("", "Enter the name"),
        ("127.1", "IPv4"),
        ("2130706433", "IPv4"),
        ("0x7f.0.0.0x1", "IPv4"),
        ("1.2.3.4.5", "IPv4"),
        ("fe80::1%eth0", "IPv6"),
        ("[::1", "IPv6"),
        ("a..b", "dot"),
        ("-oProxyCommand", "hyphens"),
        ("*.example.org", "letters"),
        ("x" * 64, "too long"),
        ("x" * 5000, "Enter the name"),
    ],
)
def test_what_is_no_host_is_refused_with_the_remedy(text: str, says: str) -> None:
    with pytest.raises(AddressFault, match=says):
        check_host(text)


def test_a_domain_is_compared_with_a_labels() -> None:
    assert parse_domain("BÜCHER.example.") == parse_domain("xn--BCHER-kva.example") == "xn--bcher-kva.example"
    for text in ("", "joe@example.org", "a b", "a\r\nb", "*.x", "x" * 3000):
        with pytest.raises(AddressFault):
            parse_domain(text)


# --- allow-lists ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "address", "covered"),
    [
        ("joe@example.org", "JOE@EXAMPLE.ORG", True),
        ("joe@example.org", '"joe"@example.org', True),
        ("joe@example.org", "joe.@example.org", False),
        ("joe@example.org", "joe@sub.example.org", False),
        ("example.org", "any@Example.Org", True),
        ("@example.org", "any@example.org", True),
        ("*@example.org", "any@example.org", True),
        ("example.org", "any@sub.example.org", False),
        ("example.org", "any@badexample.org", False),
        ("*.example.org", "any@sub.example.org", True),
        ("*.example.org", "any@a.b.example.org", True),
        ("*.example.org", "any@example.org", False),
        ("*.example.org", "any@badexample.org", False),
        ("bücher.example", "a@xn--bcher-kva.example", True),
        ("xn--bcher-kva.example", "a@BÜCHER.example", True),
        # A Cyrillic a: it looks the same, and is not.
        ("example.org", "joe@ex\u0430mple.org", False),
        ("joe@example.org", "j\u043ee@example.org", False),
    ],
)
def test_an_entry_covers_what_it_says(entry: str, address: str, covered: bool) -> None:
    assert matches(entry, parse_address(address, lenient=True)) is covered
    assert normalise_entry(normalise_entry(entry)) == normalise_entry(entry)


def test_a_set_of_entries_covers_what_any_of_them_covers() -> None:
    allowed = AddressSet(["joe@example.org", "*.example.net", "example.com"])
    assert [allowed.contains(parse_address(f"joe@{domain}")) for domain in ("example.org", "a.example.net")] == [
        True
    ] * 2
    assert not allowed.contains(parse_address("ann@example.org"))
    assert allowed and not AddressSet(())


@pytest.mark.parametrize("entry", ["", "*", "*.", "joe@", "a b", "*.*.org", "exam*ple.org", "a\n@x"])
def test_an_entry_that_names_nothing_is_refused(entry: str) -> None:
    with pytest.raises(AddressFault):
        AddressSet([entry])


# --- address lists of header fields -----------------------------------------------------------------------------------

LISTS: list[tuple[str | bytes, list[tuple[str, str]]]] = [
    ("joe@example.org", [("", "joe@example.org")]),
    (" <joe@example.org> ", [("", "joe@example.org")]),
    ("Joe Doe <joe@example.org>", [("Joe Doe", "joe@example.org")]),
    (b"Joe <joe@example.org>\r\n", [("Joe", "joe@example.org")]),
    ('"Doe, Joe" <joe@example.org>', [("Doe, Joe", "joe@example.org")]),
    ('"a\\"b" <joe@example.org>', [('a"b', "joe@example.org")]),
    ('"joe@example.org" <joe@example.org>', [("joe@example.org", "joe@example.org")]),
    ("joe@example.org <JOE@example.org>", [("", "JOE@example.org")]),
    ("Joe Q. Public <joe@example.org>", [("Joe Q. Public", "joe@example.org")]),
    ("joe@example.org (Joe)", [("Joe", "joe@example.org")]),
    ("(a (nested) one) joe@example.org", [("a (nested) one", "joe@example.org")]),
    ("a@x, b@y,c@z", [("", "a@x"), ("", "b@y"), ("", "c@z")]),
    (",,a@x, ,b@y,", [("", "a@x"), ("", "b@y")]),
    ("a@x,\r\n b@y,\r\n\tc@z", [("", "a@x"), ("", "b@y"), ("", "c@z")]),
    ("undisclosed-recipients:;", []),
    ('Team: a@x, "B" <b@y>; , c@z', [("", "a@x"), ("B", "b@y"), ("", "c@z")]),
    ("", []),
    ("=?utf-8?q?J=C3=BCrgen?= <j@x>", [("Jürgen", "j@x")]),
    ("=?utf-8?b?SsO8?=\r\n =?utf-8?q?rgen?= <j@x>", [("Jürgen", "j@x")]),
    ("=?iso-8859-1?q?Doe=2C_J=FCrgen?= <j@x>", [("Doe, Jürgen", "j@x")]),
    ("Jürgen <j@x>", [("Jürgen", "j@x")]),
    (b"J\xfcrgen <j@x>", [("J\ufffdrgen", "j@x")]),
    ('"a b"@x', [("", '"a b"@x')]),
    ("a@[192.0.2.1]", [("", "a@[192.0.2.1]")]),
    ("山@株式.会社", [("", "山@株式.会社")]),
]


@pytest.mark.parametrize(("value", "expected"), LISTS)
def test_a_list_that_all_readers_agree_on_is_read(value: str | bytes, expected: list[tuple[str, str]]) -> None:
    assert [(named.name, str(named.address)) for named in parse_header_addresses(value)] == expected


AMBIGUOUS: list[str | bytes] = [
    "a@x<b@y>",
    "a@x <b@y>",
    "<a@x> <b@y>",
    "<a@x><b@y>",
    "<a@x> b@y",
    "a@x b@y",
    "a@x; b@y",
    "a@x, <b@y> c@z",
    "<a@x, b@y>",
    "<<a@x>>",
    "<@relay:a@x>",
    "<>",
    "a@x>",
    "a @x",
    "a@ x",
    "a(c)@x",
    "a@x@y",
    "Doe, Joe <a@x>",
    "joe",
    "(b@y) a@x",
    "a@x (b@y)",
    "<a@x> (b@y)",
    "(b@y) Team: a@x;",
    "Team: a@x; (b@y)",
    "b@y: a@x;",
    ":a@x;",
    "A: B: a@x;;",
    "Team: a@x",
    "a@x;",
    '"a',
    "(a",
    "a)",
    "[x] <a@y>",
    "=?utf-8?q?b=40y?= <a@x>",
    "=?utf-8?b?YkB5LA==?= <a@x>",
    "=?utf-8?q?=3Cb=40y=3E=2C?= <a@x>",
    "=?utf-8?q?=22=3Cb=40y=3E?= =?utf-8?b?Ig==?= <a@x>",
    '"=?utf-8?q?b=40y?=" <a@x>',
    "=?utf-8?q?b=40y=00?=@x",
    "=?utf-8?q?b?=@x",
    "(=?utf-8?q?b=40y?=) a@x",
    '"a\\" <b@y>, " <a@x>',
    '"b@y, c"@x',
    '"b@y>"@x',
    "a@x\r\nBcc: b@y",
    "a@x\nBcc: b@y",
    "a@x\rb@y",
    "a@x\0",
    "a@x\u2028b@y",
    "jo\u202ee@x",
    b"j\xfce@x",
    "(" * 21 + ")" * 21 + "a@x",
]


@pytest.mark.parametrize("value", AMBIGUOUS)
def test_a_list_that_readers_could_differ_on_is_refused(value: str | bytes) -> None:
    with pytest.raises(AddressFault):
        parse_header_addresses(value)


PIECES = st.sampled_from(
    [
        "a@x",
        "b@y",
        "<c@z>",
        "Joe",
        '"D"',
        '"e@v"',
        "(f)",
        "(g@w)",
        ",",
        ";",
        ":",
        "<",
        ">",
        "@",
        " ",
        "\r\n ",
        '"',
        "\\",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_it_never_sees_fewer_addresses_than_a_lenient_reader(value: str) -> None:
    try:
        found = {named.address.key for named in parse_header_addresses(value)}
    except AddressFault:
        return
    lenient = {address.lower() for _, address in getaddresses([value]) if "@" in address}
    assert lenient <= found


@pytest.mark.parametrize(
    "value",
    [
        "," * 100_000,
        "a@b," * 50_000,
        "(" * 1_000,
        "(" * 100_000,
        '"' * 100_000,
        '"' + '\\"' * 100_000,
        "(a)" * 50_000,
        "(a)," * 50_000,
        "a " * 100_000,
        "a:" * 50_000,
        "<" * 100_000,
        "=?" * 100_000,
        "=?utf-8?q?a?= " * 10_000 + "<a@b>",
        "a@x " * 50_000,
    ],
)
def test_hostile_lists_cost_linear_time(value: str) -> None:
    started = time.perf_counter()
    with suppress(AddressFault):
        parse_header_addresses(value)
    # A quadratic reading takes minutes; a linear one a fraction of a second.
    assert time.perf_counter() - started < 5
