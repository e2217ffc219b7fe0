"""A task id that a responder gives where none belongs is not on the trail. Source: design, section 1, promise 5."""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tasktrail.services.responder import read_token
from tasktrail.services.trail_reading import open_trail
from tasktrail.testing.feeding import Feeder, Json, caller, creation
from tasktrail.testing.service import UpProcess


class Asking:
    """A responder's requests, each with whatever headers."""

    def __init__(self, up: UpProcess) -> None:
        self._url = urlsplit(json.loads((up.data / "service.json").read_text())["url"])
        self._token = read_token(up.data)

    def __call__(self, path: str, body: Json | None = None, **headers: str) -> int:
        connection = http.client.HTTPConnection(self._url.netloc, timeout=60)
        headers |= {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


@pytest.mark.requirement("T8", "R4")
async def test_a_task_id_given_where_none_belongs_is_on_no_trail(tmp_path: Path) -> None:
    """As a name, a value, a case, a tenant, a reason; alone, and within other text."""
    data = tmp_path / "data"
    with UpProcess(data) as up:
        feeder = await Feeder.connect(up.adapter(), "reports")
        view = await feeder.settled("create", creation(caller("ana"), "c1", arguments={"a": 1}))
        await feeder.close()
        task, ref = str(view["task_id"]), str(view["task_ref"])
        ask = Asking(up)
        assert ask("/api/v1/timeline", {"task": task}) == 200
        assert ask(f"/api/v1/tasks?sub={task}") == 200
        assert ask("/api/v1/tasks", None, **{"Tasktrail-Case": f"case {task}"}) == 200
        assert ask(f"/api/v1/tasks?tenant={task}") == 400
        assert ask("/api/v1/exports", {"format": "jsonl", "tenant": task}) == 400
        assert ask("/api/v1/sql", {"sql": f"SELECT 'A{task}'"}) == 200
        assert ask("/api/v1/sql", {"sql": f"SELECT 'abc{task}777'"}) == 200
        assert ask("/api/v1/sql", {"sql": "SELECT 1", "parameters": {task: "1"}}) in {200, 400}
        assert ask("/api/v1/queries/by_principal", {"parameters": {"sub": f" {task}"}}) in {200, 400}
        assert ask("/api/v1/unseal", {"task": task, "reason": f"because of {task}", "case_id": task}) == 200
        bundle = {"kind": "principal", "sub": task, "reason": f"of {task}", "case_id": task}
        assert ask("/api/v1/bundles", bundle) in {200, 400, 404}
        query = {"kind": "query", "query": "by_principal", "parameters": {"sub": task}, "reason": "evidence"}
        assert ask("/api/v1/bundles", query) in {200, 400, 404}
        async with open_trail(data) as trail:
            held = [one async for some in trail.messages() for one in some]
    assert not [(one.stream_seq, one.body) for one in held if task.encode() in one.body + one.subject.encode()]
    readings = [one.body for one in held if b'"QueryRun"' in one.body]
    assert len(readings) >= 6
    assert sum(ref.encode() in body for body in readings) >= 5, "as its reference instead"
