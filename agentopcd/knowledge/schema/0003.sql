-- Schema 3. What a run has played so far, without reading every episode.
-- No semicolons inside comments: the loader cuts this file into statements.

CREATE INDEX episode_by_run ON episode (run_id, success);
