"""Posthouse: one place where mail servers and mailboxes are configured, authorised, tested and used."""

__version__ = "0.1.0"
