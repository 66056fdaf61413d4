"""Measurements of Posthouse beside Debian's Postfix on the same machine; see `bench.relay`. Not shipped."""
