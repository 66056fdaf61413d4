"""Alembic's entry: runs the steps on the connection that `posthouse.store.migrate` hands over, in its transaction."""

from alembic import context

from posthouse.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can undo changes of tables too, where the transaction is begun in words, as the engine of migrate.py does.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
