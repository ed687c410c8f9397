-- Schema 1. Immutable rows are content-addressed; choices are appended, never overwritten.
-- No semicolons inside comments: the loader cuts this file into statements.

CREATE TABLE run (                 -- one invocation of a verb: settings in, conclusions out
  id INTEGER PRIMARY KEY,
  verb TEXT NOT NULL,
  code TEXT NOT NULL,              -- version of this package
  seed INTEGER NOT NULL,
  config TEXT NOT NULL CHECK (json_valid(config)),
  result TEXT CHECK (result IS NULL OR json_valid(result)),
  status TEXT NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'done', 'failed')),
  started_at TEXT NOT NULL,
  finished_at TEXT
) STRICT;

CREATE TABLE item (                -- one rule
  id TEXT PRIMARY KEY,             -- sha256 of the normalised text
  text TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE context (             -- the exact string a model is shown, and where
  id TEXT PRIMARY KEY,             -- sha256 of placement, a zero byte and the text, of nothing when it is empty
  rendered TEXT NOT NULL,
  placement TEXT NOT NULL CHECK (placement IN ('system', 'user')),
  recipe TEXT NOT NULL CHECK (json_valid(recipe)),     -- how it was first made
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE context_item (
  context_id TEXT NOT NULL REFERENCES context,
  pos INTEGER NOT NULL,
  item_id TEXT NOT NULL REFERENCES item,
  PRIMARY KEY (context_id, pos)
) STRICT, WITHOUT ROWID;

CREATE TABLE ref_move (            -- append-only, a NULL context means the ref was deleted
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  context_id TEXT REFERENCES context,
  actor TEXT NOT NULL,
  reason TEXT,
  run_id INTEGER REFERENCES run,
  at TEXT NOT NULL
) STRICT;

CREATE TABLE model (               -- base or trained
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  path TEXT,
  parent_id TEXT REFERENCES model,
  run_id INTEGER REFERENCES run,
  created_at TEXT NOT NULL
) STRICT;

CREATE TABLE model_context (       -- what a consolidation put into the weights
  model_id TEXT NOT NULL REFERENCES model,
  context_id TEXT NOT NULL REFERENCES context,
  weight REAL NOT NULL DEFAULT 1,
  PRIMARY KEY (model_id, context_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE task (                -- one distinct start state, in one split for ever
  env TEXT NOT NULL,
  key TEXT NOT NULL,               -- hash of the start state, not of the seed
  split TEXT NOT NULL CHECK (split IN ('extract', 'train', 'select', 'confirm', 'test', 'shared')),
  PRIMARY KEY (env, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE episode (             -- finished games only, an environment's failure is never one
  id INTEGER PRIMARY KEY,
  run_id INTEGER NOT NULL REFERENCES run,
  model_id TEXT NOT NULL REFERENCES model,
  context_id TEXT NOT NULL REFERENCES context,
  setup TEXT NOT NULL,             -- hash of everything else that changes play, its JSON is in run.config
  env TEXT NOT NULL,
  task_key TEXT NOT NULL,
  seed INTEGER NOT NULL,
  rep INTEGER NOT NULL DEFAULT 0,
  success INTEGER NOT NULL CHECK (success IN (0, 1)),
  reward REAL NOT NULL,
  stop TEXT NOT NULL,
  turns INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  created_at TEXT NOT NULL,
  FOREIGN KEY (env, task_key) REFERENCES task (env, key),
  UNIQUE (model_id, context_id, env, setup, seed, rep)  -- cache key, resume key and pairing key in one
) STRICT;

CREATE TABLE transcript (
  episode_id INTEGER PRIMARY KEY REFERENCES episode ON DELETE CASCADE,
  body BLOB NOT NULL               -- zlib of JSON
) STRICT;

CREATE TABLE item_source (         -- origin, an exact repeat adds a row here and not an item
  item_id TEXT NOT NULL REFERENCES item,
  run_id INTEGER NOT NULL REFERENCES run,
  episode_id INTEGER REFERENCES episode,
  env TEXT,                        -- env and task survive an import without episodes, NULL is unknown
  task_key TEXT,
  shown_context_id TEXT REFERENCES context,            -- earlier items the extractor could see
  line INTEGER NOT NULL,
  raw TEXT NOT NULL,
  FOREIGN KEY (env, task_key) REFERENCES task (env, key)
) STRICT;

CREATE TABLE item_event (          -- append-only, the last one decides the status
  id INTEGER PRIMARY KEY,
  item_id TEXT NOT NULL REFERENCES item,
  other_id TEXT REFERENCES item,
  event TEXT NOT NULL CHECK (event IN
    ('add', 'flag', 'approve', 'pin', 'retire', 'restore', 'supersede', 'distinct', 'note')),
  actor TEXT NOT NULL,
  reason TEXT,
  at TEXT NOT NULL
) STRICT;

-- The task is part of the key because sources that were imported without episodes have no other mark.
CREATE UNIQUE INDEX item_source_once ON item_source
  (item_id, run_id, COALESCE(episode_id, 0), COALESCE(env, ''), COALESCE(task_key, ''), line);
CREATE INDEX item_event_last ON item_event (item_id, id);
CREATE INDEX ref_move_last ON ref_move (name, id);
CREATE INDEX context_item_by_item ON context_item (item_id);
CREATE INDEX episode_by_task ON episode (env, task_key);

CREATE VIEW ref AS
  SELECT name, context_id, at FROM ref_move
  WHERE id IN (SELECT max(id) FROM ref_move GROUP BY name) AND context_id IS NOT NULL;

CREATE VIEW item_status AS
  SELECT i.id, i.text, i.created_at,
    CASE (SELECT event FROM item_event e WHERE e.item_id = i.id AND event NOT IN ('note', 'distinct')
          ORDER BY e.id DESC LIMIT 1)
      WHEN 'approve' THEN 'active' WHEN 'restore' THEN 'active' WHEN 'pin' THEN 'pinned'
      WHEN 'retire' THEN 'retired' WHEN 'supersede' THEN 'retired' ELSE 'pending' END AS status,
    (SELECT count(DISTINCT s.env || '/' || s.task_key)     -- unprompted finds only
     FROM item_source s LEFT JOIN episode e ON e.id = s.episode_id
     WHERE s.item_id = i.id AND NOT EXISTS (
       SELECT 1 FROM context_item c
       WHERE c.item_id = i.id AND c.context_id IN (s.shown_context_id, e.context_id))) AS support
  FROM item i;

CREATE TRIGGER item_frozen BEFORE UPDATE ON item BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER context_frozen BEFORE UPDATE ON context BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER task_frozen BEFORE UPDATE ON task BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER episode_frozen BEFORE UPDATE ON episode BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER item_event_frozen BEFORE UPDATE ON item_event BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER ref_move_frozen BEFORE UPDATE ON ref_move BEGIN SELECT RAISE(ABORT, 'immutable'); END;

-- The empty context is in every store, at the same moment in every store, so that two exports agree.
INSERT INTO context (id, rendered, placement, recipe, created_at) VALUES
  ('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', '', 'user', '{}', '1970-01-01T00:00:00.000000+00:00');
