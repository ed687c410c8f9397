-- Schema 2. Looks at confirm tasks, what episodes report beside success, and what came in from elsewhere.
-- No semicolons inside comments: the loader cuts this file into statements.

ALTER TABLE run ADD COLUMN imported INTEGER NOT NULL DEFAULT 0 CHECK (imported IN (0, 1));   -- its word is not evidence
ALTER TABLE episode ADD COLUMN metrics TEXT CHECK (metrics IS NULL OR json_valid(metrics));  -- NULL: in the transcript
ALTER TABLE context ADD COLUMN imported INTEGER NOT NULL DEFAULT 0 CHECK (imported IN (0, 1));  -- a stranger's text

-- What earlier versions imported: an import's runs were numbered right after its own.
UPDATE run SET imported = 1 WHERE EXISTS (
  SELECT 1 FROM run i WHERE i.verb = 'import' AND i.status = 'done'
    AND run.id BETWEEN i.id + 1 AND i.id + COALESCE(json_extract(i.result, '$.run'), 0));

CREATE TABLE look (                -- one confirmation: what it compares, and what it spends of its environment's budget
  id INTEGER PRIMARY KEY,
  env TEXT NOT NULL,
  model_id TEXT,                   -- NULL is unknown: taken over from schema 1
  context_id TEXT NOT NULL REFERENCES context,
  setup TEXT,
  plan TEXT NOT NULL,              -- hash of the tasks, their repetitions and the measure
  placebo_id TEXT REFERENCES context,
  incumbent_id TEXT REFERENCES context,
  run_id INTEGER REFERENCES run,
  level REAL NOT NULL,             -- one-sided size of each of its tests
  verdict TEXT,                    -- NULL while it is being played
  result TEXT CHECK (result IS NULL OR json_valid(result)),
  at TEXT NOT NULL,
  UNIQUE (env, model_id, context_id, setup, plan)
) STRICT;
CREATE TRIGGER look_frozen BEFORE UPDATE ON look WHEN old.verdict IS NOT NULL
  BEGIN SELECT RAISE(ABORT, 'immutable'); END;

-- The looks of schema 1, so that what they spent stays spent: who played on confirm tasks with a context ...
INSERT INTO look (env, model_id, context_id, setup, plan, run_id, level, verdict, at)
  SELECT e.env, e.model_id, e.context_id, e.setup, 'schema 1', min(e.run_id), 0.025,
    CASE WHEN EXISTS (SELECT 1 FROM ref_move m JOIN run r ON r.id = m.run_id WHERE m.name = e.env || '/best'
      AND m.context_id = e.context_id AND m.actor = 'confirm' AND NOT r.imported) THEN 'pass' ELSE 'not better' END,
    min(e.created_at)
  FROM episode e JOIN task t ON t.env = e.env AND t.key = e.task_key JOIN run p ON p.id = e.run_id
  WHERE t.split = 'confirm' AND NOT p.imported
    AND e.context_id != 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
  GROUP BY e.env, e.model_id, e.context_id, e.setup ORDER BY min(e.id);
-- ... and what passed where tasks are shared.
INSERT INTO look (env, model_id, context_id, plan, run_id, level, verdict, at)
  SELECT substr(m.name, 1, length(m.name) - 5), json_extract(r.config, '$.model_id'), m.context_id, 'schema 1', m.run_id,
    0.025, 'pass', m.at
  FROM ref_move m JOIN run r ON r.id = m.run_id
  WHERE m.actor = 'confirm' AND m.name LIKE '%/best' AND m.context_id IS NOT NULL AND NOT r.imported
    AND NOT EXISTS (SELECT 1 FROM look l WHERE l.context_id = m.context_id AND l.env || '/best' = m.name)
  ORDER BY m.id;

-- Support counts what this store has seen itself.
DROP VIEW item_status;
CREATE VIEW item_status AS
  SELECT i.id, i.text, i.created_at,
    CASE (SELECT event FROM item_event e WHERE e.item_id = i.id AND event NOT IN ('note', 'distinct')
          ORDER BY e.id DESC LIMIT 1)
      WHEN 'approve' THEN 'active' WHEN 'restore' THEN 'active' WHEN 'pin' THEN 'pinned'
      WHEN 'retire' THEN 'retired' WHEN 'supersede' THEN 'retired' ELSE 'pending' END AS status,
    (SELECT count(DISTINCT s.env || '/' || s.task_key)     -- unprompted finds only
     FROM item_source s JOIN run r ON r.id = s.run_id LEFT JOIN episode e ON e.id = s.episode_id
     WHERE s.item_id = i.id AND NOT r.imported AND NOT EXISTS (
       SELECT 1 FROM context_item c
       WHERE c.item_id = i.id AND c.context_id IN (s.shown_context_id, e.context_id))) AS support
  FROM item i;
