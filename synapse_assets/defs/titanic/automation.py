"""When assets are made by themselves: an arrival at once, the model once per burst of arrivals.

Dagster's own conditions say what has changed, those below for how long, and the sensor at the end
looks. Each evaluation is in the UI, on the asset's page under "Automation": which part of the
condition was true, and which was not.
"""

import warnings
from typing import Any

import dagster as dg

# The model waits until nothing has arrived for so long, but no longer than that.
QUIET_SECONDS = 60
LATEST_SECONDS = 15 * 60
_INTERVAL_SECONDS = 10

# Tags of runs that make everything that follows from what they change. Of a run of a whole job
# Dagster does not record which assets it makes.
WHOLE = {"synapse_assets/whole": "true"}

_IS = dg.AutomationCondition
# Of assets; Dagster's own are of assets and checks, which is not the same to a type checker.
Condition = dg.AutomationCondition[Any]
_Context = dg.AutomationContext[dg.AssetKey]
_Result = dg.AutomationResult[dg.AssetKey]


class HeldFor(Condition):
    """True once another condition has been true for a time without a break.

    For assets without partitions, since it remembers one time only.
    """

    def __init__(self, condition: Condition, *, seconds: float) -> None:
        """Create the condition from what has to be true, and for how long."""
        self._condition = condition
        self._seconds = seconds

    @property
    def name(self) -> str:
        """What the UI calls it."""
        return f"held_for({self._seconds:g} s)"

    @property
    def children(self) -> list[Condition]:
        """The condition that has to be true."""
        return [self._condition]

    # Dagster awaits it if it is a coroutine, which it has to be to await another condition's.
    async def evaluate(self, context: _Context) -> _Result:  # type: ignore[override]
        """Evaluate the other condition, and remember since when it is true."""
        (inner,) = await _evaluate(self.children, context)
        now = context.evaluation_time.timestamp()
        since = None
        if not inner.true_subset.is_empty:
            since = now if context.cursor is None else float(context.cursor)
        has_held = since is not None and now - since >= self._seconds
        return dg.AutomationResult(
            context,
            context.candidate_subset if has_held else context.get_empty_subset(),
            cursor=None if since is None else repr(since),
            child_results=[inner],
        )


class Outstanding(Condition):
    """True from when one condition was true, until another one is.

    Other than Dagster's `since` it stays true where both are: what changed in the very moment in
    which a run began may be in what the run makes, or not.
    """

    def __init__(self, changed: Condition, *, until: Condition) -> None:
        """Create the condition from what makes it true, and what ends that."""
        self._changed = changed
        self._until = until

    @property
    def name(self) -> str:
        """What the UI calls it."""
        return "outstanding"

    @property
    def children(self) -> list[Condition]:
        """What makes it true, and what ends that."""
        return [self._changed, self._until]

    async def evaluate(self, context: _Context) -> _Result:  # type: ignore[override]
        """Evaluate both conditions, and remember for which partitions it is true."""
        changed, until = await _evaluate(self.children, context)
        before = context.previous_true_subset or context.get_empty_subset()
        left = before.compute_difference(until.true_subset)
        return dg.AutomationResult(
            context,
            left.compute_union(changed.true_subset),
            child_results=[changed, until],
        )


async def _evaluate(conditions: list[Condition], context: _Context) -> list[_Result]:
    """Evaluate conditions over all partitions, since a change must not go unseen."""
    everything = context.asset_graph_view.get_full_subset(key=context.key)
    return [
        await context.for_child_condition(
            condition, child_indices=[index], candidate_subset=everything
        ).evaluate_async()
        for index, condition in enumerate(conditions)
    ]


def with_new_content() -> Condition:
    """Return a condition for a partition to be made: it is missing, or its input has changed.

    An input that was made again with the same content has the same data version, and changes
    nothing. A partition that failed waits for another content, or for somebody to look at it.
    """
    return (
        (_is_first() | _has_changed())
        & ~_IS.any_deps_missing()
        & ~_IS.any_deps_in_progress()
        & ~_IS.in_progress()
    )


def once_per_burst(
    *, quiet_seconds: float = QUIET_SECONDS, latest_seconds: float = LATEST_SECONDS
) -> Condition:
    """Return a condition for an asset made of a whole table, of which many partitions may arrive.

    It is made once nothing above it has moved for a while. Partitions that are missing do not hold
    it up: what they would be made of may be in quarantine for good.

    Args:
        quiet_seconds: How long nothing above it may have moved, in seconds.
        latest_seconds: How long it waits at most for that, in seconds.
    """
    is_due = ((_is_first() & _IS.any_deps_match(~_IS.missing())) | _has_changed()).with_label(
        "table_has_new_content"
    )
    is_moving = (
        _IS.any_deps_match(_IS.newly_updated())
        | _IS.any_deps_in_progress()
        | _IS.any_deps_match(_IS.any_deps_in_progress())
    ).with_label("arrivals_on_their_way")
    is_broken = _IS.any_deps_match(
        _IS.any_checks_match(_IS.check_failed(), blocking_only=True)
    ).with_label("blocking_check_failed")
    is_quiet = HeldFor(~is_moving, seconds=quiet_seconds)
    is_late = HeldFor(is_due, seconds=latest_seconds)
    return is_due & (is_quiet | is_late) & ~is_broken & ~_IS.in_progress()


def _is_first() -> Condition:
    return (_IS.missing() & ~_IS.execution_failed()).with_label("missing_and_not_failed")


def _has_changed() -> Condition:
    """Return a condition that something above has another content since a run last began.

    Since it began, and not since it ended: what arrives while it runs is not in what it makes.
    """
    changed = _IS.any_deps_match(
        _IS.data_version_changed()
        & ~_IS.executed_with_root_target()
        & ~_IS.executed_with_tags(tag_values=WHOLE)
    ).with_label("content_above_changed")
    began = (_IS.newly_requested() | _IS.in_progress().newly_true()).with_label("run_began")
    return Outstanding(changed, until=began)


with warnings.catch_warnings():
    # Conditions of our own are evaluated in our code, which is a beta feature.
    warnings.simplefilter("ignore", dg.BetaWarning)
    automation = dg.AutomationConditionSensorDefinition(
        "titanic_automation",
        target=dg.AssetSelection.assets(
            "titanic_prepared", "titanic_quarantined", "survival_model"
        ),
        use_user_code_server=True,
        minimum_interval_seconds=_INTERVAL_SECONDS,
        # It asks for nothing before an arrival was taken in, by the sensor or by hand.
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Prepares each arrival that was taken in, then trains the model once per "
        "burst of arrivals.",
    )
