"""The OpenAPI document is true: schemathesis asks whatever it allows, and what it does not, and finds nothing."""

import asyncio
import sys

import pytest

from shared.runtime.settings import Settings
from shared.store.pool import Pool
from tests.integration.panels import ADMIN_TOKEN, running
from tests.peers.dns import DnsPeer

# What is allowed by its shape is still refused where it is no domain, no target or no age: no pattern says what is one.
_EXCLUDED_CHECKS = "positive_data_acceptance"
_EXAMPLES = 3  # of each operation, besides those at the edges of each field


@pytest.mark.timeout(600)  # 2,500 requests
async def test_schemathesis_finds_nothing(settings: Settings, pool: Pool) -> None:
    """Every operation but the probe, which connects to wherever it is told; not without a login, either."""
    async with DnsPeer() as dns:
        host, _, port = dns.address.rpartition(":")
        async with running(settings, pool, dns_servers=((host, int(port)),)) as panel:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "schemathesis.cli", "run", f"{panel.url}/api/v1/openapi.json",
                "--header", f"Authorization: Bearer {ADMIN_TOKEN}", "--checks", "all",
                "--exclude-checks", _EXCLUDED_CHECKS, "--exclude-path", "/api/v1/probe",
                "--phases", "examples,coverage,fuzzing", "--max-examples", str(_EXAMPLES), "--seed", "6",
                "--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off", "--no-color",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            out, _ = await process.communicate()
    assert 0 == process.returncode, out.decode()
