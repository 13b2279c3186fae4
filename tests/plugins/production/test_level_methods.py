"""Service level targets and reports over a real port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.testing.waiting import eventually
from google.protobuf.duration_pb2 import Duration

Serve = Callable[..., Any]


def target(target_id: str = "mine", **fields: Any) -> pb.SlaTarget:
    usual: dict[str, Any] = {"indicator": pb.SLA_INDICATOR_RESPONSE_TIME, "target_value": 250}
    return pb.SlaTarget(target_id=target_id, **{**usual, **fields})


async def test_targets_are_made_read_changed_and_removed(serve: Serve) -> None:
    async with serve() as hive:
        stub = hive.stub
        assert len((await stub.ListSlaTargets(pb.ListSlaTargetsRequest())).targets) == 4
        made = (await stub.CreateSlaTarget(pb.CreateSlaTargetRequest(target=target()))).target
        assert (made.percentile, made.window.seconds, made.breach_threshold_percent) == (95, 86_400, 5)
        assert (await stub.GetSlaTarget(pb.GetSlaTargetRequest(target_id="mine"))).target == made
        changed = pb.UpdateSlaTargetRequest(target=target(percentile=99), revision=1)
        assert (await stub.UpdateSlaTarget(changed)).target.revision == 2
        assert await hive.reason(stub.UpdateSlaTarget(changed)) == ("ABORTED", "REVISION_MISMATCH")
        twice = stub.CreateSlaTarget(pb.CreateSlaTargetRequest(target=target()))
        assert await hive.reason(twice) == ("ALREADY_EXISTS", "RECORD_EXISTS")
        await stub.DeleteSlaTarget(pb.DeleteSlaTargetRequest(target_id="mine"))
        gone = stub.GetSlaTarget(pb.GetSlaTargetRequest(target_id="mine"))
        assert await hive.reason(gone) == ("NOT_FOUND", "RECORD_NOT_FOUND")


@pytest.mark.parametrize(
    "bad",
    [
        target(""),
        target(indicator=0),
        target(target_value=0),
        target(target_value=-1),
        target(indicator=pb.SLA_INDICATOR_AVAILABILITY, target_value=101),
        target(percentile=100),
        target(percentile=10),
        target(window=Duration(seconds=1)),
        target(window=Duration(seconds=41 * 86_400)),
        target(breach_threshold_percent=-1),
    ],
)
async def test_a_target_that_makes_no_sense_is_refused(serve: Serve, bad: pb.SlaTarget) -> None:
    async with serve() as hive:
        refused = hive.stub.CreateSlaTarget(pb.CreateSlaTargetRequest(target=bad))
        assert await hive.reason(refused) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_the_calls_of_this_test_are_what_is_reported(serve: Serve) -> None:
    async with serve(sample_interval_seconds=0.05) as hive:
        for _ in range(20):
            await hive.stub.ListSlaTargets(pb.ListSlaTargetsRequest())

        async def report() -> pb.SlaReport | None:
            asked = pb.CheckSlaComplianceRequest(target_ids=["response_time_p95"])
            (found,) = (await hive.stub.CheckSlaCompliance(asked)).reports
            return found if found.total >= 20 else None

        found = await eventually(report)
        assert found is not None
        assert found.measured
        assert found.met
        assert 0 < found.current_value < 1_000
        assert found.budget_left == 1.0
        everything = await hive.stub.CheckSlaCompliance(pb.CheckSlaComplianceRequest())
        assert [each.target.target_id for each in everything.reports] == [
            "error_rate",
            "response_time_p95",
            "system_availability",
            "task_completion_rate",
        ]
        assert (everything.compliant, everything.compliance_percent) == (True, 100.0)


async def test_what_nobody_promised_cannot_be_checked(serve: Serve) -> None:
    async with serve() as hive:
        check = hive.stub.CheckSlaCompliance
        nobody = check(pb.CheckSlaComplianceRequest(target_ids=["nobody"]))
        assert await hive.reason(nobody) == ("NOT_FOUND", "RECORD_NOT_FOUND")
        short = check(pb.CheckSlaComplianceRequest(window=Duration(seconds=1)))
        assert await hive.reason(short) == ("INVALID_ARGUMENT", "INVALID_FIELD")
