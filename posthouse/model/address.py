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

from posthouse.protocol_words import decode_words  # placeholder, replaced below
