"""The numbers of the marketplace in one place, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass, field

from domain.geography import EtaEstimator, GreatCircleEta
from domain.letters import Medium


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules that a deployment may tune. Defaults are the product's own.

    Attributes:
        series_search_seconds: how long before its start an instance of a series without a provider looks for one.
        reach: by which media people are reached who do not answer on a socket, and after how many seconds, soonest
            first; empty: by none.
    """

    offer_on_demand_seconds: float = 30
    offer_scheduled_seconds: float = 90
    wave_sizes: tuple[int, ...] = (1, 3, 8, 8, 8)
    wave_radius_m: tuple[float, ...] = (10_000, 10_000, 10_000, 20_000, 40_000)
    dispatch_limit_seconds: float = 600
    empty_wave_retry_seconds: float = 5
    rescue_seconds: float = 300
    misses_until_away: int = 3
    busy_horizon_seconds: float = 2 * 3600
    linger_seconds: float = 45
    typing_seconds: float = 6
    no_show_after_seconds: float = 600
    dispute_window_days: int = 14
    arrival_radius_m: float = 150
    fix_max_age_seconds: float = 60
    fix_in_seconds: float = 1
    fix_out_seconds: float = 3
    eta_distance_m: float = 100
    stall_radius_m: float = 150
    stall_seconds: float = 180
    stall_check_seconds: float = 60
    eta_interval_seconds: float = 30
    commission_percent: int = 15
    response_target_seconds: float = 300
    arrival_target_seconds: float = 3600
    arrival_grace_seconds: float = 900
    completion_target_factor: float = 1.5
    idempotency_hours: float = 24
    hold_seconds: float = 300
    holds_per_customer: int = 3
    slot_step_minutes: int = 30
    slot_days: int = 31
    series_days: int = 60
    series_per_customer: int = 20
    series_search_seconds: float = 3 * 86_400
    invitation_days: float = 7
    reach: tuple[tuple[Medium, float], ...] = ()
    eta: EtaEstimator = field(default_factory=GreatCircleEta)
