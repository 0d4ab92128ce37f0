"""Traffic for the demo: simulated customers book, simulated providers accept and work, all through real sockets."""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

from domain.types import JSON
from server.demo import CENTRE, PASSWORD, SERVICES, Crowd
from server.robot import Robot, RobotError
from server.telemetry import logger

log = logger(__name__)

RADIUS_DEGREES = 0.010
PATIENCE_SECONDS = 40.0
"""A simulated customer whose booking nobody takes for so long looks elsewhere."""

STEPS = ("en_route", "arrived", "in_progress", "completed")
REPLIES = ("On my way!", "Be there shortly.", "Could you move the car, please?", "All done, thank you.")


def firms_for(bookings_per_minute: float) -> int:
    """How many simulated firms keep up with so much work; a job takes one of them some eight seconds."""
    return min(30, max(3, math.ceil(bookings_per_minute / 5)))


async def simulate(base: str, crowd: Crowd, bookings_per_minute: float, stop: asyncio.Event) -> None:
    """Makes so many bookings a minute until told to stop. Anybody whose socket goes comes back."""
    jobs = [_customer(base, crowd.customer, bookings_per_minute)]
    jobs += [_provider(base, email) for email in crowd.providers]
    tasks = [asyncio.create_task(_keep_at_it(job), name="simulated") for job in jobs]
    try:
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_at_it(job: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await job()
        except RobotError as error:
            log.info("simulated_person_paused", why=error.type)
        await asyncio.sleep(random.uniform(0.5, 2.0))


def _customer(base: str, email: str, bookings_per_minute: float) -> Callable[[], Awaitable[None]]:
    async def live() -> None:
        robot = await Robot.open(base, email, PASSWORD, "simulated-customer/1")
        loop = asyncio.get_running_loop()
        waiting: deque[tuple[float, str]] = deque(maxlen=1_000)
        try:
            while True:
                wish = await robot.call("booking.create", _wish())
                waiting.append((loop.time(), wish["booking"]["id"]))
                while waiting and loop.time() - waiting[0][0] > PATIENCE_SECONDS:
                    await _give_up(robot, waiting.popleft()[1])
                await asyncio.sleep(random.expovariate(bookings_per_minute / 60))
        finally:
            await robot.close()

    return live


async def _give_up(robot: Robot, booking_id: str) -> None:
    booking = (await robot.call("booking.get", {"booking_id": booking_id}))["booking"]
    if booking["status"] == "awaiting_assignment":
        await robot.call(
            "booking.cancel", {"booking_id": booking_id, "reason": "found somebody else", "key": str(uuid.uuid4())}
        )


def _provider(base: str, email: str) -> Callable[[], Awaitable[None]]:
    async def live() -> None:
        robot = await Robot.open(base, email, PASSWORD, "simulated-provider/1")
        try:
            await robot.call("presence.set", {"status": "online"})
            async for event in robot.events():
                if event["type"] == "offer.made":
                    await _answer(robot, event["data"]["offer"])
        finally:
            await robot.close()

    return live


async def _answer(robot: Robot, offer: JSON) -> None:
    await asyncio.sleep(random.uniform(0.3, 2.5))
    try:
        accepted = await robot.call("offer.accept", {"offer_id": offer["id"], "key": str(uuid.uuid4())})
    except RobotError:
        return  # somebody was quicker; that is the point of the show
    booking = accepted["booking"]
    for step, words in zip(STEPS, REPLIES, strict=True):
        await asyncio.sleep(random.uniform(0.8, 2.5))
        try:
            moved = await robot.call(
                "booking.transition",
                {"booking_id": booking["id"], "to": step, "version": booking["version"], "key": str(uuid.uuid4())},
            )
            booking = moved["booking"]
            if random.random() < 0.5:
                await robot.call(
                    "message.send",
                    {"conversation_id": booking["conversation_id"], "text": words, "key": str(uuid.uuid4())},
                )
        except RobotError as error:
            log.info("simulated_job_ended", why=error.type)
            return


def _wish() -> JSON:
    angle, distance = random.uniform(0, 2 * math.pi), RADIUS_DEGREES * math.sqrt(random.random())
    return {
        "service_id": random.choice(SERVICES).id,
        "kind": "on_demand",
        "location": {
            "lat": round(CENTRE.lat + distance * math.sin(angle), 5),
            "lon": round(CENTRE.lon + distance * math.cos(angle) * 1.6, 5),
        },
        "notes": random.choice(("Dripping tap", "No hot water", "Fuse keeps tripping", "New socket, please")),
        "key": str(uuid.uuid4()),
    }
