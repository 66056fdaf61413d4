"""Addresses, domains and host names: reads them strictly, compares them, and matches them against allow-lists.

Used wherever a name enters: forms, envelope, header fields, allow-lists. It does no I/O: whether a domain exists or a
mailbox takes mail is found out elsewhere. The writer of address header fields is `posthouse.protocol.headers`.

Strict reads an RFC 5321 section 4.1.2 Mailbox with the extension of RFC 6531 section 3.3. Names of a single label, such
as `localhost` or `mfp01`, are taken: they are usual in closed networks.

Lenient takes, beyond that, exactly these forms that real systems produce:

- spaces and tabs around the address (dropped);
- dots in a row, at the start or at the end of the local part (kept as they are);
- one dot at the end of the domain (dropped);
- underscores in the domain;
- local parts above 64 octets, while the whole stays within 254;
- `(`, `)`, `[`, `]` and `:` without quotes in the local part (put into quotes, which makes the address legal).

Neither takes control characters, line ends of any alphabet, invisible or direction-changing characters, angle brackets,
routes, comments, or more than one address.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import idna

from posthouse.model.encoded_word import decode_words, looks_like_encoded_word

# RFC 5321 section 4.5.3.1: local part 64, domain 255, path 256 with its two brackets. RFC 1035 section 2.3.4: label 63.
MAX_LOCAL_OCTETS = 64
MAX_ADDRESS_OCTETS = 254
MAX_DOMAIN_OCTETS = 255
MAX_LABEL_OCTETS = 63
# Nothing legal is longer, even where each octet is written as a quoted pair; longer input is not looked at.
_MAX_INPUT = 1024

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+"
_fast_match = re.compile(
    rf"(?=[^@]{{1,{MAX_LOCAL_OCTETS}}}@)[{_ATEXT}]++(?:\.[{_ATEXT}]++)*+"
    rf"@(?![^.]{{64}}){_LABEL}(?:\.(?![^.]{{64}}){_LABEL})*+"
).fullmatch

_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*+")
_LOOSE_LABEL = r"[A-Za-z0-9_]++(?:-++[A-Za-z0-9_]++)*+"
_LOOSE_DOMAIN = re.compile(rf"{_LOOSE_LABEL}(?:\.{_LOOSE_LABEL})*+")
_DOT_STRING = re.compile(rf"[{_ATEXT}\x80-\U0010ffff]++(?:\.[{_ATEXT}\x80-\U0010ffff]++)*+")
_LOOSE_DOT_STRING = re.compile(rf"[.{_ATEXT}\x80-\U0010ffff]++")
_QUOTABLE = re.compile(rf"[.()\[\]:{_ATEXT}\x80-\U0010ffff]++")
# RFC 5321 section 4.1.2: qtextSMTP and quoted-pairSMTP.
_QUOTED_STRING = re.compile(r'"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*+"')
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


class AddressFault(ValueError):
    """The text is not an address, domain or host. Says the fault and the remedy, never what was entered."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address as it goes on the wire: `local` with its quotes where it has them, `domain` in its own alphabet."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"

    @property
    def is_ascii_local(self) -> bool:
        """Whether the local part can go to a server without SMTPUTF8 (RFC 6531 section 3.2)."""
        return self.local.isascii()

    @property
    def ascii_domain(self) -> str:
        """The domain in lower case with A-labels (RFC 5890); an address literal with its brackets."""
        return _comparable_domain(self.domain)

    @property
    def ascii_text(self) -> str:
        """The address with A-labels, for servers without SMTPUTF8. Still beyond ASCII where the local part is."""
        return str(self) if self.domain.isascii() else f"{self.local}@{self.ascii_domain}"

    @property
    def key(self) -> str:
        """What addresses are compared by: quotes resolved, local part and domain without regard to case.

        RFC 5321 section 2.4 lets a host tell local parts apart by case. Hardly any does, and an allow-list that can be
        passed or missed by writing one letter large helps nobody.
        """
        return f"{self.local_content.lower()}@{self.ascii_domain}"

    @property
    def local_content(self) -> str:
        """The local part without its quotes: `"a.b"` and `a.b` are the same (RFC 5321 section 4.1.2)."""
        if self.local.startswith('"'):
            return _QUOTED_PAIR.sub(r"\1", self.local[1:-1])
        return self.local


@dataclass(frozen=True, slots=True)
class NamedAddress:
    """An address of a header field with its display name, decoded ("" where it has none)."""

    address: Address
    name: str = ""


def fast_ascii_address(text: str) -> bool:
    """Whether `text` is an ordinary ASCII `name@host.example`, strictly legal. False says nothing."""
    return len(text) <= MAX_ADDRESS_OCTETS and _fast_match(text) is not None


def parse_address(text: str, *, lenient: bool = False) -> Address:
    """Read one address. Raises AddressFault. The module's text lists what lenient takes beyond strict."""
    if len(text) > _MAX_INPUT:
        raise AddressFault(f"The address is too long. At most {MAX_ADDRESS_OCTETS} octets are allowed.")
    return _parse_address(text, lenient)


def parse_domain(text: str) -> str:
    """Read a domain; returns it in lower case with A-labels, for comparison. Underscores pass. Raises AddressFault."""
    if len(text) > _MAX_INPUT:
        raise AddressFault(f"The domain is too long. At most {MAX_DOMAIN_OCTETS} octets are allowed.")
    if "@" in text:
        raise AddressFault("This is not a domain. Enter only what follows the @.")
    return _comparable_domain(_read_domain(text.removesuffix("."), _LOOSE_DOMAIN))


def check_host(text: str) -> str:
    """Read a host: name (IDN too), IPv4 or IPv6, with or without brackets. Raises AddressFault.

    Returns the name in lower case with A-labels, or the IP address in its usual form without brackets.
    """
    if not text or len(text) > _MAX_INPUT:
        raise AddressFault("Enter the name or the IP address of the host, for example smtp.example.org.")
    if any(character.isspace() for character in text) or _CONTROLS.search(text):
        raise AddressFault("A host name has no spaces or control characters. Remove them.")
    if "/" in text or "@" in text:
        raise AddressFault("This is not a host name. Enter the host name alone, without scheme, path or user.")
    if text.startswith("[") or text.count(":") > 1:
        return _read_ipv6(text)
    if ":" in text:
        raise AddressFault("Enter the host name alone; the port has its own field.")
    name = text.removesuffix(".")
    last_label = name.rpartition(".")[2]
    # Resolvers read 127.1, 0x7f.1 and 2130706433 as IP addresses: only the plain form may be one.
    if last_label.isdecimal() or re.fullmatch(r"0[xX][0-9A-Fa-f]*", last_label):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise AddressFault("This is not an IPv4 address. Write four numbers from 0 to 255.") from None
    return _comparable_domain(_read_domain(name, _LOOSE_DOMAIN))


# --- allow-lists ------------------------------------------------------------------------------------------------------


def normalise_entry(entry: str) -> str:
    """The form of an allow-list entry that is kept and compared. Raises AddressFault.

    An address; `example.org` (or `@example.org`, `*@example.org`) for exactly that domain; `*.example.org` for all its
    subdomains, at any depth, but not itself.
    """
    text = entry.strip(" \t")
    if text.startswith("*."):
        return "*." + parse_domain(text[2:])
    if text.startswith(("@", "*@")):
        return parse_domain(text.partition("@")[2])
    if "@" in text:
        return parse_address(text, lenient=True).key
    return parse_domain(text)


def matches(entry: str, address: Address) -> bool:
    """Whether an allow-list entry covers the address, without regard to case. Raises AddressFault for a bad entry."""
    return AddressSet((entry,)).contains(address)


class AddressSet:
    """An allow-list, built once: `contains` looks up hashes, however many entries there are.

    Raises AddressFault when an entry is not one that `normalise_entry` reads.
    """

    __slots__ = ("_addresses", "_domains", "_parents")

    def __init__(self, entries: Iterable[str]) -> None:
        addresses, domains, parents = set(), set(), set()
        for entry in map(normalise_entry, entries):
            if entry.startswith("*."):
                parents.add(entry[2:])
            elif "@" in entry:
                addresses.add(entry)
            else:
                domains.add(entry)
        self._addresses = frozenset(addresses)
        self._domains = frozenset(domains)
        self._parents = frozenset(parents)

    def __bool__(self) -> bool:
        return bool(self._addresses or self._domains or self._parents)

    def contains_exactly(self, address: Address) -> bool:
        """Whether an entry is this very address, not its domain."""
        return bool(self._addresses) and address.key in self._addresses

    def contains(self, address: Address) -> bool:
        """Whether an entry covers the address."""
        domain = address.ascii_domain
        if domain in self._domains:
            return True
        if self._parents:
            _, _, parent = domain.partition(".")
            while parent:
                if parent in self._parents:
                    return True
                _, _, parent = parent.partition(".")
        return bool(self._addresses) and address.key in self._addresses


# --- one address ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _parse_address(text: str, lenient: bool) -> Address:
    if fast_ascii_address(text):
        local, _, domain = text.partition("@")
        return Address(local, domain)
    if lenient:
        text = text.strip(" \t")
    _refuse_unseen(text)
    # RFC 6532 section 3.1. Before anything is looked at: composing can make ASCII of what was not.
    text = unicodedata.normalize("NFC", text)
    local, at, domain = text.rpartition("@")
    if not at:
        raise AddressFault("An address needs an @ between the name and the domain.")
    if not local:
        raise AddressFault("The part before the @ is missing.")
    address = Address(_read_local(local, lenient), _read_address_domain(domain, lenient))
    if len(address.local.encode()) + 1 + max(len(address.ascii_domain), len(address.domain.encode())) > (
        MAX_ADDRESS_OCTETS
    ):
        raise AddressFault(f"The address is too long. At most {MAX_ADDRESS_OCTETS} octets are allowed.")
    return address


def _refuse_unseen(text: str) -> None:
    """Refuse controls, line ends, white space other than the space, invisible, private and unassigned characters."""
    for character in text:
        if character == " ":
            continue
        if unicodedata.category(character) in _UNSEEN_CATEGORIES or character == "\ufffd":
            raise AddressFault(
                "The address holds a line end, a control character or another character that cannot be seen. "
                "Type it again by hand."
            )


def _read_local(local: str, lenient: bool) -> str:
    octets = len(local.encode())
    if octets > MAX_LOCAL_OCTETS and not lenient:
        raise AddressFault(f"The part before the @ is too long. At most {MAX_LOCAL_OCTETS} octets are allowed.")
    if _DOT_STRING.fullmatch(local):
        return local
    if local.startswith('"'):
        if _QUOTED_STRING.fullmatch(local):
            return local
        raise AddressFault("The quotes in the part before the @ do not fit. Write it without quotes where you can.")
    if lenient and _LOOSE_DOT_STRING.fullmatch(local):
        return local
    if lenient and _QUOTABLE.fullmatch(local):
        return f'"{local}"'
    if "@" in local:
        raise AddressFault("There is more than one @. Enter one address only.")
    if "." in local and _LOOSE_DOT_STRING.fullmatch(local):
        raise AddressFault(
            "The part before the @ starts or ends with a dot, or has two in a row. Correct it, or choose the lenient "
            "address rule."
        )
    if "<" in local or ">" in local:
        raise AddressFault("Enter the address alone, without a name and angle brackets.")
    raise AddressFault("The part before the @ holds a character that is not allowed there, such as a space or comma.")


def _read_address_domain(domain: str, lenient: bool) -> str:
    if not domain:
        raise AddressFault("The domain after the @ is missing.")
    if domain.startswith("["):
        return _read_literal(domain)
    if lenient:
        return _read_domain(domain.removesuffix("."), _LOOSE_DOMAIN)
    return _read_domain(domain, _DOMAIN)


def _read_literal(domain: str) -> str:
    """An address literal (RFC 5321 section 4.1.3), brackets included."""
    try:
        if domain.endswith("]"):
            inner = domain[1:-1]
            if inner[:5].lower() == "ipv6:" and "%" not in inner:
                return f"[IPv6:{ipaddress.IPv6Address(inner[5:])}]"
            return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError:
        pass
    raise AddressFault("What stands in the brackets is no IP address. Write [192.0.2.1] or [IPv6:2001:db8::1].")


# --- domains and hosts ------------------------------------------------------------------------------------------------


def _read_domain(domain: str, shape: re.Pattern[str]) -> str:
    """A domain as it is kept: ASCII as written, international ones in the form that UTS 46 maps them to."""
    if not domain:
        raise AddressFault("The domain is missing.")
    if not domain.isascii():
        return _read_international_domain(domain)
    if not shape.fullmatch(domain):
        raise AddressFault(_domain_fault(domain))
    if len(domain) > MAX_DOMAIN_OCTETS or any(len(label) > MAX_LABEL_OCTETS for label in domain.split(".")):
        raise AddressFault(
            f"The domain is too long. At most {MAX_DOMAIN_OCTETS} octets in all and {MAX_LABEL_OCTETS} between two "
            "dots are allowed."
        )
    return domain


def _read_international_domain(domain: str) -> str:
    _refuse_unseen(domain)
    if " " in domain:
        raise AddressFault(_domain_fault(domain))
    try:
        mapped = idna.uts46_remap(domain, std3_rules=True, transitional=False)
        encoded = idna.encode(mapped, strict=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        encoded = ""
    # The mapping may bring ASCII out of what only looked like something else, such as full-width letters.
    if not _DOMAIN.fullmatch(encoded):
        raise AddressFault("The international domain is not valid (RFC 5891). Check its spelling.") from None
    return mapped


def _domain_fault(domain: str) -> str:
    if " " in domain or "\t" in domain:
        return "The domain holds a space. Remove it."
    if ".." in domain or domain.startswith(".") or domain.endswith("."):
        return "The domain starts or ends with a dot, or has two in a row. Correct it."
    if "_" in domain:
        return "The domain holds an underscore. Correct it, or choose the lenient address rule."
    return "The domain may hold letters, digits, dots, and hyphens inside a label. Remove the rest."


@lru_cache(maxsize=4096)
def _comparable_domain(domain: str) -> str:
    if domain.isascii():
        return domain.lower()
    return idna.encode(domain).decode("ascii").lower()


def _read_ipv6(text: str) -> str:
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if bracket and rest.startswith(":"):
            raise AddressFault("Enter the host alone; the port has its own field.")
        text = inner if bracket and not rest else ""
    try:
        # A zone such as %eth0 would make the meaning depend on the machine.
        return str(ipaddress.IPv6Address("" if "%" in text else text))
    except ValueError:
        raise AddressFault("This is not an IPv6 address. Write it as 2001:db8::1.") from None


# --- address lists of header fields -----------------------------------------------------------------------------------

# A comment deeper than this is no comment of a person's; readers differ on where they give up.
_MAX_COMMENT_DEPTH = 20

_PLAIN_WORD = rf"[{_ATEXT}.]++"
_fast_header = re.compile(
    rf'[ \t]*+(?:(?:"([ !#-?A-\[\]-~]*+)"|({_PLAIN_WORD}(?: {_PLAIN_WORD})*+))[ \t]++)?+<([^<>\s]+)>[ \t]*+'
).fullmatch
_TOKEN = re.compile(
    rf"""(?P<space>[ \t]++)
    |(?P<atom>[{_ATEXT}.\x80-\U0010ffff]++)
    |(?P<quoted>"(?:[^"\\]|\\.)*+")
    |(?P<literal>\[[^\[\]\\]*+\])
    |(?P<special>[<>@,:;(])""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_STEP = re.compile(r"[^()\\]++|\\.|[()]", re.DOTALL)
_NOT_IN_HEADERS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FOLD = re.compile(r"\r\n(?=[ \t])")
_MENTIONED = re.compile(r"""[^\s<>,;:"()\[\]]*@[^\s<>,;:"()\[\]]*""")

_BLANK = frozenset({"space", "comment"})
_WORDS = frozenset({"space", "comment", "atom", "quoted", "literal", "@"})

_AMBIGUOUS = "The address field can be read in more than one way. Write each address as name@example.org or as "
_AMBIGUOUS += '"Name" <name@example.org>, with commas between them.'


def parse_header_addresses(value: str | bytes) -> list[NamedAddress]:
    """Read the address list of From, Sender, To, Cc, Bcc or Reply-To (RFC 5322 section 3.4). Raises AddressFault.

    Groups are resolved to their members. Linear in the length of the value. What two readers could take for different
    lists is refused, so that nobody ever sees an address that is missing here: two addresses without a comma, routes,
    white space or comments inside an address, an encoded-word inside an address, and another address inside a comment
    or an encoded display name.
    """
    text = _header_text(value)
    if (fast := _fast_header(text)) is not None and "=?" not in text and fast_ascii_address(fast[3]):
        return [NamedAddress(_parse_address(fast[3], False), fast[1] or fast[2] or "")]
    if fast_ascii_address(text) and "=?" not in text:
        return [NamedAddress(_parse_address(text, False))]
    return _AddressList(text).read()


def _header_text(value: str | bytes) -> str:
    # Octets that are not UTF-8 become U+FFFD, which may stand in a display name but in no address.
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    text = _FOLD.sub("", text.removesuffix("\r\n"))
    if _NOT_IN_HEADERS.search(text):
        raise AddressFault("The address field holds a line end or a control character. Remove it.")
    return text


class _AddressList:
    """One reading of an address list: each token is stepped over once, without recursion."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._in_group = False
        self._found: list[NamedAddress] = []

    def read(self) -> list[NamedAddress]:
        end = len(self._tokens)
        while self._at < end:
            run = self._run(_WORDS)
            stop = self._tokens[self._at][0] if self._at < end else ","
            self._at += 1
            if stop == ":":
                self._open_group(run)
            elif stop == "<":
                self._found.append(self._named(run))
                self._end_member()
            elif stop == "," or (stop == ";" and self._in_group):
                self._take_bare(run)
                if stop == ";":
                    self._in_group = False
                    self._end_member()
            else:
                raise AddressFault(_AMBIGUOUS)
        if self._in_group:
            raise AddressFault("A group in the address field is not closed. End it with a semicolon.")
        return self._found

    def _run(self, kinds: frozenset[str]) -> list[tuple[str, str]]:
        """Step over tokens of these kinds."""
        start, end = self._at, len(self._tokens)
        while self._at < end and self._tokens[self._at][0] in kinds:
            self._at += 1
        return self._tokens[start : self._at]

    def _open_group(self, run: list[tuple[str, str]]) -> None:
        named = any(kind in ("atom", "quoted") for kind, _ in run)
        if self._in_group or not named or any("@" in text for _, text in run):
            raise AddressFault(_AMBIGUOUS)
        self._in_group = True

    def _take_bare(self, run: list[tuple[str, str]]) -> None:
        """An address without brackets, or nothing: RFC 5322 section 4.4 has empty members, which all readers skip."""
        if any(kind not in _BLANK for kind, _ in run):
            address = _bare_address(run)
            self._found.append(NamedAddress(address, _check_mentions(_comments(run), address)))
        elif any("@" in text for _, text in run):
            raise AddressFault(_AMBIGUOUS)

    def _named(self, before: list[tuple[str, str]]) -> NamedAddress:
        inside = self._run(_WORDS)
        if self._at == len(self._tokens) or self._tokens[self._at][0] != ">":
            raise AddressFault(_AMBIGUOUS)
        self._at += 1
        address = _bare_address(inside)
        comments = _check_mentions(_comments([*inside, *self._run(_BLANK)]), address)
        return NamedAddress(address, _display_name(before, address) or comments)

    def _end_member(self) -> None:
        """After `>` or the end of a group: only blanks before the next comma, or the end of the group."""
        blanks = self._run(_BLANK)
        if any("@" in text for _, text in blanks):
            raise AddressFault(_AMBIGUOUS)
        if self._at == len(self._tokens):
            return
        kind = self._tokens[self._at][0]
        if kind == ",":
            self._at += 1
        elif not (kind == ";" and self._in_group):
            raise AddressFault(_AMBIGUOUS)


def _tokens(text: str) -> list[tuple[str, str]]:
    """The tokens of an address field: (kind, text); the kind of a special is itself."""
    tokens: list[tuple[str, str]] = []
    position, end = 0, len(text)
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None:
            raise AddressFault(_AMBIGUOUS)
        position = found.end()
        kind = str(found.lastgroup)
        if kind != "special":
            tokens.append((kind, found[0]))
        elif found[0] == "(":
            position = _end_of_comment(text, position)
            tokens.append(("comment", text[found.end() : position - 1]))
        else:
            tokens.append((found[0], found[0]))
    return tokens


def _end_of_comment(text: str, position: int) -> int:
    depth = 1
    for step in _COMMENT_STEP.finditer(text, position):
        if step[0] == "(":
            depth += 1
            if depth > _MAX_COMMENT_DEPTH:
                raise AddressFault("Comments in the address field are nested too deeply. Remove them.")
        elif step[0] == ")":
            depth -= 1
            if depth == 0:
                return step.end()
    raise AddressFault("A comment in the address field is not closed. Remove the bracket.")


def _bare_address(tokens: list[tuple[str, str]]) -> Address:
    """An address among white space and comments, with nothing else and none of them inside."""
    kinds = [kind for kind, _ in tokens]
    first, last = 0, len(tokens)
    while first < last and kinds[first] in ("space", "comment"):
        first += 1
    while last > first and kinds[last - 1] in ("space", "comment"):
        last -= 1
    if kinds[first:last] not in (["atom", "@", "atom"], ["quoted", "@", "atom"], ["atom", "@", "literal"], _QUOTED_LIT):
        raise AddressFault(_AMBIGUOUS)
    local, domain = tokens[first][1], tokens[last - 1][1]
    if looks_like_encoded_word(local) or (kinds[first] == "quoted" and re.search("[@<>,;]", local)):
        raise AddressFault(_AMBIGUOUS)
    return parse_address(f"{local}@{domain}")


_QUOTED_LIT = ["quoted", "@", "literal"]


def _comments(tokens: list[tuple[str, str]]) -> str:
    return decode_words(" ".join(text.strip() for kind, text in tokens if kind == "comment")).strip()


def _display_name(tokens: list[tuple[str, str]], address: Address) -> str:
    """The display name before an angle address: a phrase, obsolete dots included, or the same address once more."""
    if any(kind not in ("space", "comment", "atom", "quoted") for kind, _ in tokens):
        # Devices write `scan@x <scan@x>`: whichever a reader takes, it is the same.
        if _bare_address(tokens).key != address.key:
            raise AddressFault(_AMBIGUOUS)
        return ""
    words: list[str] = []
    for kind, text in tokens:
        if kind == "quoted":
            inner = _QUOTED_PAIR.sub(r"\1", text[1:-1])
            # Readers that do not know the backslash find the end of the quotes elsewhere; some decode inside quotes.
            if "\\" in text or "=?" in text:
                _check_mentions(inner, address)
                _check_mentions(decode_words(inner), address)
            words.append(inner)
        elif kind == "atom":
            words.append(text)
        elif kind == "comment":
            _check_mentions(decode_words(text), address)
        elif words:
            words.append(" ")
    phrase = "".join(words)
    if "=?" in phrase:
        phrase = decode_words(phrase)
        # A reader that decodes before it splits would see what is written here.
        _check_mentions(phrase, address)
    return phrase.strip()


def _check_mentions(text: str, address: Address) -> str:
    """Return `text` unless it mentions an address other than this one."""
    if "@" in text:
        for mentioned in _MENTIONED.findall(text):
            try:
                same = parse_address(mentioned, lenient=True).key == address.key
            except AddressFault:
                same = False
            if not same:
                raise AddressFault(_AMBIGUOUS)
    return text
