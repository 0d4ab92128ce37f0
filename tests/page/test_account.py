"""The account dialog: two-step sign-in from the QR code to the recovery code, sign-ins, devices and the password."""

from __future__ import annotations

import re

import pyotp
import pytest
from playwright.async_api import Page, expect

from tests.page.three_people import Pane, ThreePeople

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

DEMO_PASSWORD = "demo-Fixnado-2026"


async def open_account(page: Page, pane: Pane) -> None:
    await pane["account-open"].click()
    await expect(page.get_by_test_id("mfa-state")).to_be_visible()


async def sign_in(pane: Pane, email: str, password: str = DEMO_PASSWORD) -> None:
    await pane["account-switch"].click()
    await pane["login-email"].fill(email)
    await pane["login-password"].fill(password)
    await pane["login-submit"].click()


async def test_two_step_sign_in_from_the_qr_code_to_the_recovery_code_and_off_again(first_people: ThreePeople) -> None:
    people = first_people
    page, pane = people.page, people.provider
    await open_account(page, pane)
    await expect(page.get_by_test_id("mfa-state")).to_have_attribute("data-on", "false")
    await page.get_by_test_id("mfa-enrol").click()
    qr = page.get_by_test_id("mfa-qr")
    await expect(qr).to_be_visible()
    assert await qr.evaluate("img => img.decode().then(() => img.naturalWidth)") > 50
    secret = (await page.get_by_test_id("mfa-secret").inner_text()).replace(" ", "")

    await page.get_by_test_id("mfa-code").fill("000000")
    await page.get_by_test_id("mfa-activate").click()
    await expect(page.get_by_test_id("account-error")).to_contain_text("not right")
    await page.get_by_test_id("mfa-code").fill(pyotp.TOTP(secret).now())
    await page.get_by_test_id("mfa-activate").click()
    codes = page.get_by_test_id("mfa-recovery-codes").locator("code")
    await expect(codes).to_have_count(10)
    first, second = (await codes.all_inner_texts())[:2]
    await page.get_by_test_id("mfa-done").click()
    await expect(page.get_by_test_id("mfa-state")).to_contain_text("10 recovery codes left")
    await expect(codes).to_have_count(0)
    await page.get_by_test_id("account-close").click()
    await pane.is_("online")

    await sign_in(pane, "provider1@demo.test")
    await expect(pane["login-second-step"]).to_be_visible()
    await pane["login-code"].fill("000000")
    await pane["login-code-submit"].click()
    await expect(pane["login-error"]).to_contain_text("not right")
    await pane["login-code"].fill(first.upper())
    await pane["login-code-submit"].click()
    await pane.is_("online")

    await open_account(page, pane)
    await expect(page.get_by_test_id("mfa-state")).to_contain_text("9 recovery codes left")
    await page.get_by_test_id("mfa-off-password").fill(DEMO_PASSWORD)
    await page.get_by_test_id("mfa-off-code").fill(second)
    await page.get_by_test_id("mfa-off").click()
    await expect(page.get_by_test_id("mfa-state")).to_have_attribute("data-on", "false")


async def test_sign_ins_and_devices_are_listed_ended_and_signed_out_by_a_new_password(
    first_people: ThreePeople,
) -> None:
    people = first_people
    page, customer = people.page, people.customer
    # The same person in a second pane: the admin's page signs in the customer's other device.
    other = await page.context.new_page()
    await other.goto(page.url)
    elsewhere = Pane(other, "customer")
    await elsewhere.is_("online")

    await open_account(page, customer)
    sessions = page.get_by_test_id("session")
    await expect(sessions).to_have_count(2)
    await expect(sessions.first).to_contain_text(re.compile(r"trust \d+ of 100"))
    await expect(page.get_by_test_id("device")).to_have_count(1)
    await page.get_by_test_id("session-end").click()
    await expect(sessions).to_have_count(1)
    await expect(elsewhere["login-form"]).to_be_visible(timeout=5_000)
    await customer.is_("online")

    await elsewhere["login-email"].fill("customer@demo.test")
    await elsewhere["login-password"].fill(DEMO_PASSWORD)
    await elsewhere["login-submit"].click()
    await elsewhere.is_("online")
    await page.get_by_test_id("password-present").fill("not the password")
    await page.get_by_test_id("password-next").fill("another long password")
    await page.get_by_test_id("password-change").click()
    await expect(page.get_by_test_id("account-error")).to_contain_text("not right")
    await page.get_by_test_id("password-present").fill(DEMO_PASSWORD)
    await page.get_by_test_id("password-change").click()
    await expect(page.get_by_test_id("account-said")).to_contain_text("changed")
    await expect(elsewhere["login-form"]).to_be_visible(timeout=5_000)
    await customer.is_("online")
    await other.close()
