"""The OpenAPI document says what is so: schemathesis asks a running service all that it allows, and much that it does not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from service.bench.serving import serving

CONFIGURATION = Path(__file__).parents[1] / "data" / "schemathesis.toml"
KEY = "a key with every scope"
EXAMPLES = 50


def test_schemathesis_finds_nothing(small_model: Path, tmp_path: Path) -> None:
    settings = {"SDC_MODEL": str(small_model), "SDC_ADMIN_KEY": KEY, "SDC_LOG_LEVEL": "error", "SDC_COMPARE_PER_MINUTE": "100000"}
    with serving(tmp_path, tmp_path / "log", **settings) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run", f"{server.base}/openapi.json"]
        options = ["--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--header", f"Authorization: Bearer {KEY}"]
        ran = subprocess.run([*command, *options, "--no-color"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout
    assert "Tested: 12" in ran.stdout, ran.stdout


def parameters(client: TestClient) -> list[dict[str, Any]]:
    document = client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    return [parameter for operation in operations for parameter in operation.get("parameters", ())]


def test_numbers_have_their_bounds(client: TestClient) -> None:
    numbers = [each["schema"] for each in parameters(client) if each["schema"].get("type") == "integer"]
    assert len(numbers) > 10
    assert all("minimum" in schema for schema in numbers)
    assert {each["name"] for each in parameters(client) if "anyOf" in each["schema"]} == {"steps"}  # a number, or `article`


def test_errors_are_problems_in_the_document_too(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path in document["paths"].values():
        for operation in path.values():
            errors = {status: reply for status, reply in operation["responses"].items() if status >= "400"}
            assert "default" in errors
            assert all(list(reply["content"]) == ["application/problem+json"] for reply in errors.values())
