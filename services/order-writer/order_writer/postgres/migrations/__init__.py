"""The schema, in steps (alembic). SQL as it is; a step that was released is never edited."""
