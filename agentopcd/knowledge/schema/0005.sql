-- Schema 5. What a served model was asked by programs outside, what it answered, and how that was rated.
-- No semicolons inside comments: the loader cuts this file into statements.

CREATE TABLE session (             -- requests that belong together: one episode
  id INTEGER PRIMARY KEY,
  recording TEXT NOT NULL,         -- the name given to `serve --record`
  key TEXT NOT NULL,               -- the client's name of the session, or one made for it
  task TEXT,                       -- the client's name of the task, NULL: none was sent
  model_id TEXT NOT NULL REFERENCES model,             -- who answered the first request
  context_id TEXT NOT NULL REFERENCES context,         -- what that model was shown besides
  arm TEXT NOT NULL DEFAULT '',    -- which of several served models the session was dealt to, '': there was one
  started_at TEXT NOT NULL,
  UNIQUE (recording, key)
) STRICT;

CREATE TABLE request (             -- finished requests only, written before their last byte is sent
  id INTEGER PRIMARY KEY,
  session_id INTEGER NOT NULL REFERENCES session,
  pos INTEGER NOT NULL,            -- from 0, in the order in which they were finished
  name TEXT NOT NULL UNIQUE,       -- the id that the client was given
  key TEXT,                        -- the client's name of the request: a repeated one is answered, not stored, again
  asked TEXT NOT NULL,             -- sha256 of what was asked, to tell a retry from another request of the same name
  tail TEXT NOT NULL,              -- sha256 of its messages and the reply: whoever continues them continues the session
  model_id TEXT NOT NULL REFERENCES model,             -- whose weights answered
  context_id TEXT NOT NULL REFERENCES context,
  redacted INTEGER NOT NULL DEFAULT 0 CHECK (redacted IN (0, 1)),  -- text was replaced, so token ids are left out
  prompt_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  body BLOB NOT NULL,              -- zlib of JSON
  begun_at TEXT NOT NULL,
  at TEXT NOT NULL,                -- when it was finished
  UNIQUE (session_id, pos)
) STRICT;

CREATE TABLE feedback (            -- append-only, for each figure the last word counts
  id INTEGER PRIMARY KEY,
  session_id INTEGER NOT NULL REFERENCES session,
  success INTEGER CHECK (success IN (0, 1)),           -- NULL: not said
  reward REAL,
  metrics TEXT CHECK (metrics IS NULL OR json_valid(metrics)),
  at TEXT NOT NULL,
  CHECK (success IS NOT NULL OR reward IS NOT NULL OR metrics IS NOT NULL)
) STRICT;

CREATE INDEX request_by_tail ON request (tail);
CREATE INDEX request_by_key ON request (key);
CREATE INDEX feedback_by_session ON feedback (session_id, id);

CREATE TRIGGER session_frozen BEFORE UPDATE ON session BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER request_frozen BEFORE UPDATE ON request BEGIN SELECT RAISE(ABORT, 'immutable'); END;
CREATE TRIGGER feedback_frozen BEFORE UPDATE ON feedback BEGIN SELECT RAISE(ABORT, 'immutable'); END;
