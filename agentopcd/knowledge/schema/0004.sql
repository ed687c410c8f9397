-- Schema 4. Which student of an environment plays, and why.
-- No semicolons inside comments: the loader cuts this file into statements.

CREATE TABLE student_move (        -- append-only: each row puts a model in the place of ENV/student
  id INTEGER PRIMARY KEY,
  env TEXT NOT NULL,
  model_id TEXT REFERENCES model,  -- NULL: the environment has no student, its base plays
  actor TEXT NOT NULL CHECK (actor IN ('gate', 'no gate', 'person', 'rollback', 'newest')),
  reason TEXT,
  run_id INTEGER REFERENCES run,
  at TEXT NOT NULL
) STRICT;
CREATE INDEX student_move_last ON student_move (env, id);
CREATE TRIGGER student_move_frozen BEFORE UPDATE ON student_move BEGIN SELECT RAISE(ABORT, 'immutable'); END;

-- Until schema 3 the newest student played, so what played goes on to play.
INSERT INTO student_move (env, model_id, actor, run_id, at)
  SELECT json_extract(r.config, '$.env'), m.id, 'newest', r.id, m.created_at
  FROM model m JOIN run r ON r.id = m.run_id
  WHERE m.parent_id IS NOT NULL AND r.status = 'done' AND json_extract(r.config, '$.env') IS NOT NULL
  ORDER BY m.created_at, m.rowid;
