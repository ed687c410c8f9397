"""The description of the endpoints: what bodies may hold, for checking them and for ``/openapi.json``."""

from __future__ import annotations

from typing import Any

import agentopcd

LARGEST = 1e300
"""Of a reward or a metric."""
_NUMBER = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
_TOKENS = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}

WANTED = {
    "n": "only one reply at a time can be asked for; leave it out or give 1",
    "top_logprobs": "only the log-probability of each sampled token is told; leave it out or give 0",
    "tool_choice": "only 'auto' and 'none' are supported",
    "response_format": "only text is supported",
    "logit_bias": "it would change what is sampled; leave it out",
    "frequency_penalty": "it would change what is sampled; leave it out or give 0",
    "presence_penalty": "it would change what is sampled; leave it out or give 0",
    "parallel_tool_calls": "a model cannot be kept from calling several tools; leave it out or give true",
    "store": "what is kept is decided where the server is started (--record); leave it out or give false",
}
"""In plain words, what is wanted of parameters that have few values here."""
RATING = "give success, reward or metrics"
"""What a rating without any of them lacks."""

SCHEMAS: dict[str, dict[str, Any]] = {
    "ChatRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string"},
            "messages": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
            },
            "max_tokens": _TOKENS,
            "max_completion_tokens": _TOKENS,
            "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
            "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
            "top_k": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1},
            "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**63 - 1},
            "stop": {
                "type": ["string", "array", "null"],
                "minLength": 1,
                "maxLength": 200,
                "maxItems": 4,
                "items": {"type": "string", "minLength": 1, "maxLength": 200},
            },
            "stream": {"type": ["boolean", "null"]},
            "stream_options": {
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": {"include_usage": {"type": ["boolean", "null"]}},
            },
            "logprobs": {"type": ["boolean", "null"]},
            "top_logprobs": {"enum": [0, None]},
            "tools": {"type": ["array", "null"], "items": {"type": "object"}},
            "tool_choice": {"enum": ["auto", "none", None]},
            "parallel_tool_calls": {"enum": [True, None]},
            "n": {"enum": [1, None]},
            "response_format": {"enum": [{"type": "text"}, None]},
            "frequency_penalty": {"enum": [0, None]},
            "presence_penalty": {"enum": [0, None]},
            "logit_bias": {"enum": [{}, None]},
            "store": {"enum": [False, None]},
            "service_tier": {"enum": ["auto", "default", None]},
            # Labels of the client's own. They change nothing here and are not kept.
            "user": {"type": ["string", "null"]},
            "metadata": {"type": ["object", "null"]},
            "safety_identifier": {"type": ["string", "null"]},
            "prompt_cache_key": {"type": ["string", "null"]},
        },
    },
    "Feedback": {
        "type": "object",
        "required": ["session"],
        "additionalProperties": False,
        "anyOf": [{"required": ["success"]}, {"required": ["reward"]}, {"required": ["metrics"]}],
        "properties": {
            "session": {
                "type": "string",
                "minLength": 1,
                "maxLength": 200,
                "description": "The session's name, or the id of one of its replies.",
            },
            "success": {"type": "boolean"},
            "reward": _NUMBER,
            "metrics": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 64,
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_./-]{0,63}$"},
                "additionalProperties": _NUMBER,
            },
        },
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
}


def openapi() -> dict[str, Any]:
    """The description of all endpoints (OpenAPI 3.1)."""

    def answer(what: str) -> dict[str, Any]:
        fault = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        plain = {"application/json": {"schema": {"type": "object"}}}
        return {"200": {"description": what, "content": plain}, "default": {"description": "error", "content": fault}}

    def post(name: str, summary: str, what: str, headers: dict[str, str]) -> dict[str, Any]:
        body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        given = [
            {"name": header, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
            for header, text in headers.items()
        ]
        return {"summary": summary, "parameters": given, "requestBody": {"required": True, "content": body},
                "responses": answer(what)}  # fmt: skip

    headers = {
        "X-Agentopcd-Session": "The session that the request belongs to; all its requests are one episode.",
        "X-Agentopcd-Task": "The task that the session is about.",
        "Idempotency-Key": "Names the request: sent again, it gets the same reply and is kept once.",
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentopcd serve", "version": agentopcd.__version__},
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": post("ChatRequest", "A reply to a conversation", "the reply", headers)},
            "/v1/feedback": {"post": post("Feedback", "How a session came out", "it was kept", {})},
            "/v1/models": {"get": {"summary": "The model that is served", "responses": answer("one model")}},
            "/health": {"get": {"summary": "Whether the server answers", "responses": answer("it does")}},
        },
    }
