"""The least that a proxy in Python can do: FastAPI in front, httpx behind, nothing decided and nothing recorded."""
