"""The studio under load on this machine: more and more pages, then four times what its queue holds.

    python benchmarks/studio.py --seconds 30

Pages upload a phantom and move through its slices; every fourth action reconstructs the volume. The server is
the command `slicebook studio` in a process of its own. Meanwhile /health is asked ten times a second. The
result, `results/studio.json`, holds answers by status, latencies, and the server's memory.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import machine

from slicebook.io.nifti import write_nifti
from slicebook.phantom.simulator import patient_volume
from slicebook.studio.app import QUEUE
from slicebook.studio.guard import MAX_JSON

CLIENTS = (1, 2, 4, 8, 16)
OVERLOAD = 4 * QUEUE
ALLOWED = {200, 413, 422, 429, 503}
MODEL = "starter:compact"
MARGIN_MIB = 64  # by which memory may stay above its baseline
SETTLE_SECONDS = 300.0


@dataclass
class Measures:
    """What is measured in one phase: answers by status, and seconds of actions and of /health."""

    statuses: Counter[int] = field(default_factory=Counter)
    actions: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    failed: int = 0

    def record(self, clients: int) -> dict[str, Any]:
        """Return the phase as JSON values."""
        return {
            "clients": clients,
            "statuses": {str(code): count for code, count in sorted(self.statuses.items())},
            "actions": len(self.actions),
            "action_seconds_median": round(statistics.median(self.actions), 3) if self.actions else None,
            "failed_actions": self.failed,
            "health_ms_p95": round(1000 * quantile(self.health, 0.95), 1),
            "health_ms_max": round(1000 * max(self.health), 1),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def studio_process(log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command; yield its process and its address."""
    words = [sys.executable, "-m", "slicebook", "studio", MODEL, "--port", "0", "--device", "cpu"]
    with log.open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(words, stderr=said, stdout=said, text=True)
        try:
            while not (found := re.search(r"http://\S+", log.read_text(encoding="utf-8"))):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text(encoding="utf-8"))
                time.sleep(0.2)
            yield process, found[0]
        finally:
            process.terminate()
            process.wait(30)


class Page:
    """One open page: what its script would send."""

    def __init__(self, client: httpx.AsyncClient, functions: dict[str, int], measures: Measures) -> None:
        self.client, self.functions, self.measures = client, functions, measures
        self.session = uuid.uuid4().hex

    async def upload(self, content: bytes) -> str | None:
        """Send a file; return where the server put it."""
        answer = await self.post("upload", files={"files": ("volume.nii.gz", content)})
        return str(answer.json()[0]) if answer is not None and answer.status_code == 200 else None

    async def post(self, where: str, **options: Any) -> httpx.Response | None:
        """Send one request and count its status."""
        try:
            answer = await self.client.post(f"/gradio_api/{where}", **options)
        except httpx.TransportError:
            self.measures.failed += 1
            return None
        self.measures.statuses[answer.status_code] += 1
        return answer

    async def act(self, name: str, data: list[Any]) -> bool:
        """Run one function of the page and wait for its result."""
        began = time.perf_counter()
        body = {"data": data, "fn_index": self.functions[name], "session_hash": self.session, "trigger_id": 1}
        answer = await self.post("queue/join", json=body)
        if answer is None or answer.status_code != 200:
            return False
        try:
            async with self.client.stream(
                "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
            ) as stream:
                self.measures.statuses[stream.status_code] += 1
                async for line in stream.aiter_lines():
                    if line.startswith("data:") and '"process_completed"' in line:
                        done = json.loads(line[5:])
                        shown = json.dumps(done["output"].get("data"), ensure_ascii=False)
                        good = done["success"] and "sb-alert" not in shown
                        self.measures.actions.append(time.perf_counter() - began)
                        if not good:
                            self.measures.failed += 1
                            print(name, shown[:300], flush=True)
                        return bool(good)
        except httpx.TransportError:
            self.measures.failed += 1
        return False


async def functions_of(client: httpx.AsyncClient) -> dict[str, int]:
    """Return the number of the computation that each element of the page starts.

    Where the first function only shows and hides buttons, it is the one after it.
    """
    config = (await client.get("/config")).json()
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    after = {one["trigger_after"]: one["id"] for one in config["dependencies"] if "trigger_after" in one}
    return {
        str(names.get(target)): after.get(one["id"], one["id"])
        for one in config["dependencies"]
        for target, _ in one["targets"]
        if target is not None
    }


def file_data(path: str) -> dict[str, Any]:
    """Return an upload as the page's script names it."""
    return {"path": path, "orig_name": "volume.nii.gz", "meta": {"_type": "gradio.FileData"}}


async def use(page: Page, content: bytes, until: float) -> None:
    """Open a volume and move through it until a time."""
    opened, number = False, 0
    while time.perf_counter() < until:
        if not opened:
            path = await page.upload(content)
            opened = path is not None and await page.act("look-open", [file_data(path)])
        elif number % 4 == 3:
            await page.act("look-all", [])
        else:
            await page.act("look-slice", [number % 8])
        number += 1
        await asyncio.sleep(0.05)


async def disturb(page: Page, until: float) -> None:
    """Send what must be refused: a request that is too large, and one that is not valid."""
    while time.perf_counter() < until:
        await page.post("queue/join", content=bytes(MAX_JSON + 1))
        await page.post("queue/join", json={"data": "not a list", "fn_index": []})
        await asyncio.sleep(0.5)


def watch(address: str, measures: Measures, until: float) -> None:
    """Ask for /health ten times a second."""
    with httpx.Client(base_url=address, timeout=30) as client:
        while time.perf_counter() < until:
            began = time.perf_counter()
            answer = client.get("/health")
            measures.health.append(time.perf_counter() - began)
            measures.statuses[answer.status_code] += 1
            time.sleep(0.1)


async def phase(address: str, clients: int, content: bytes, seconds: float) -> Measures:
    """Run so many pages at a time."""
    measures = Measures()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        functions = await functions_of(client)
        until = time.perf_counter() + seconds
        pages = [Page(client, functions, measures) for _ in range(clients)]
        await asyncio.gather(
            *(use(page, content, until) for page in pages),
            disturb(Page(client, functions, measures), until),
            asyncio.to_thread(watch, address, measures, until),
        )
    return measures


def memory_mib(process: subprocess.Popen[str]) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def settled(process: subprocess.Popen[str], baseline: float) -> tuple[float, float]:
    """Wait until the memory is back near its baseline; return it, and the seconds that took."""
    began = time.perf_counter()
    while memory_mib(process) > baseline + MARGIN_MIB and time.perf_counter() - began < SETTLE_SECONDS:
        time.sleep(1)
    return memory_mib(process), time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all phases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        volume = patient_volume(0, 0, slices=8, shape=(128, 64))
        write_nifti(path, volume.image, affine=volume.affine)
        content = path.read_bytes()
        with studio_process(Path(folder) / "log") as (process, address):
            asyncio.run(phase(address, 1, content, min(chosen.seconds, 10.0)))  # loads what loads once
            baseline, load, phases = memory_mib(process), os.getloadavg()[0], []
            for clients in (*CLIENTS, OVERLOAD):
                measures = asyncio.run(phase(address, clients, content, chosen.seconds))
                phases.append({**measures.record(clients), "memory_mib": round(memory_mib(process))})
                print(phases[-1], flush=True)
            after, seconds = settled(process, baseline)
    found = {int(code) for one in phases for code in one["statuses"]}
    result = {
        **machine.surroundings(1, "gradio", "httpx", "uvicorn"),
        "load_average_before": round(load, 1),
        "seconds_per_phase": chosen.seconds,
        "phases": phases,
        "memory_mib": {"baseline": round(baseline), "after": round(after), "seconds": round(seconds)},
        "only_allowed_statuses": found <= ALLOWED,
        "health_within_200_ms_p95": all(one["health_ms_p95"] <= 200 for one in phases),
        "memory_back": after <= baseline + MARGIN_MIB,
    }
    with suppress(FileExistsError):
        chosen.results.mkdir(parents=True)
    machine.write(chosen.results / "studio.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
