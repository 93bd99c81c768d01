"""The kind of stack that bedrock-access-gateway runs on Lambda: FastAPI, pydantic, boto3, behind Mangum."""
