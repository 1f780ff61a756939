"""Parts of ``smet config``: every key of a run file, its JSON schema, where a value came from, and new run files."""
