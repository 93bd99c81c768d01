"""Naru: a serverless, OpenAI-compatible gateway."""
