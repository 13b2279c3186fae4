"""ProductionService: pools of agents and their policies."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import Call

from .alert_methods import check_revision
from .convert_pools import fill_decision, fill_policy, policy_from
from .fields import page_after, page_size, page_token, required_id
from .ledger import Ledger, Rows
from .pools import MEMORIES, POLICIES, Pools, policy_id
from .scaling import ScalingPolicy

R = TypeVar("R", pb.GetScalingPolicyResponse, pb.SetScalingPolicyResponse)


class PoolMethods:
    """Pools, for callers."""

    def __init__(self, ledger: Ledger, pools: Pools) -> None:
        self._ledger = ledger
        self._pools = pools

    async def GetScalingPolicy(self, request: pb.GetScalingPolicyRequest, call: Call) -> pb.GetScalingPolicyResponse:
        """Get the policy of a pool."""
        policy = await self._get(call, request.pool_id)
        response = pb.GetScalingPolicyResponse()
        await self.fill(response.policy, policy)
        return response

    async def _get(self, call: Call, pool_id: str) -> ScalingPolicy:
        pool_id = required_id(pool_id, "pool_id", 64)
        found = await self._ledger.find(POLICIES, policy_id(call.namespace, pool_id))
        if found is None:
            raise POLICIES.missing(pool_id)
        return found

    async def fill(self, message: pb.ScalingPolicy, policy: ScalingPolicy) -> None:
        """Write a policy, with its agents and the last decision."""
        memory = await self._ledger.find(MEMORIES, policy_id(policy.namespace, policy.id))
        members = await self._pools.members(policy)
        fill_policy(message, policy, len(members.agents), memory.last if memory else None)

    async def SetScalingPolicy(self, request: pb.SetScalingPolicyRequest, call: Call) -> pb.SetScalingPolicyResponse:
        """Make or replace the policy of a pool."""
        given = policy_from(request.policy, call.namespace)
        key = policy_id(call.namespace, given.id)
        if await self._ledger.find(POLICIES, key) is None:
            await self._ledger.has_room(POLICIES)
        agents = len((await self._pools.members(given)).agents)

        def decide(rows: Rows) -> pb.SetScalingPolicyResponse:
            old = rows.find(POLICIES, key)
            check_revision(request.revision, old.revision if old else 0)
            policy = replace(given, revision=old.revision + 1 if old else 1)
            rows.put(POLICIES, key, policy)
            memory = rows.find(MEMORIES, key)
            response = pb.SetScalingPolicyResponse()
            fill_policy(response.policy, policy, agents, memory.last if memory else None)
            return response

        return await self._ledger.once(call, request, pb.SetScalingPolicyResponse, decide)

    async def ListScalingPolicies(
        self, request: pb.ListScalingPoliciesRequest, call: Call
    ) -> pb.ListScalingPoliciesResponse:
        """List the policies of the namespace, by pool."""
        begin = policy_id(call.namespace, "")
        size = page_size(request.page_size)
        policies, last = await self._ledger.page(POLICIES, page_after(request), size, begin=begin)
        response = pb.ListScalingPoliciesResponse(next_page_token=page_token(request, last))
        for policy in policies:
            await self.fill(response.policies.add(), policy)
        return response

    async def DeleteScalingPolicy(
        self, request: pb.DeleteScalingPolicyRequest, call: Call
    ) -> pb.DeleteScalingPolicyResponse:
        """Remove the policy of a pool; its agents stay."""
        pool_id = required_id(request.pool_id, "pool_id", 64)
        key = policy_id(call.namespace, pool_id)

        def decide(rows: Rows) -> pb.DeleteScalingPolicyResponse:
            if rows.find(POLICIES, key) is None:
                raise POLICIES.missing(pool_id)
            rows.delete(POLICIES, key)
            rows.delete(MEMORIES, key)
            return pb.DeleteScalingPolicyResponse()

        return await self._ledger.once(call, request, pb.DeleteScalingPolicyResponse, decide)

    async def TriggerAutoScaling(
        self, request: pb.TriggerAutoScalingRequest, call: Call
    ) -> pb.TriggerAutoScalingResponse:
        """Decide on a pool now, and act."""
        policy = await self._get(call, request.pool_id)

        async def act() -> pb.TriggerAutoScalingResponse:
            response = pb.TriggerAutoScalingResponse()
            decision = await self._pools.turn(policy, force=request.force, dry_run=request.dry_run)
            fill_decision(response.decision, decision)
            return response

        return await self._ledger.once_after(call, request, pb.TriggerAutoScalingResponse, act)
