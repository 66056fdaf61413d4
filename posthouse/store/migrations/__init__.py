"""Alembic's steps from one release's tables to the next. Run by `posthouse.store.migrate`, never by hand."""
