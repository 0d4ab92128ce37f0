/**
 * What may be sent a second time when the first answer was lost.
 *
 * A command with an idempotency key has its effect once however often it is sent. Repeating a question, or setting a
 * value to what it is, does no harm. Everything else is left to the caller, who is told `ConnectionLost`.
 */

/** Commands that take an idempotency key. @type {ReadonlySet<string>} */
export const KEYED = new Set([
  'booking.create',
  'booking.transition',
  'booking.cancel',
  'booking.reschedule',
  'booking.assign',
  'offer.accept',
  'offer.decline',
  'slot.hold',
  'slot.release',
  'availability.set_rules',
  'availability.add_exception',
  'availability.remove_exception',
  'calendar.import',
  'calendar.subscribe',
  'calendar.remove_source',
  'series.create',
  'series.edit',
  'series.cancel',
  'message.send',
  'organisation.invite',
  'organisation.leave',
  'invitation.accept',
  'invitation.revoke',
  'member.set_role',
  'member.remove',
  'notification.send',
  'flag.set',
  'user.sign_out',
  'zone.import',
  'sla.set_policy',
]);

/** Questions, and values that are set. @type {ReadonlySet<string>} */
export const REPEATABLE = new Set([
  'booking.get',
  'booking.list',
  'offer.list',
  'availability.get',
  'availability.slots',
  'calendar.issue_feed',
  'calendar.list_sources',
  'calendar.revoke_feed',
  'series.get',
  'series.list',
  'service.list',
  'zone.list',
  'zone.metrics',
  'zone.heat',
  'zone.recount',
  'sla.at_risk',
  'sla.list_policies',
  'sla.get_policy',
  'route.plan',
  'provider.list',
  'conversation.history',
  'organisation.get',
  'organisation.list',
  'member.list',
  'invitation.list',
  'invitation.issue',
  'notification.list',
  'notification.read',
  'notification.preferences',
  'notification.set_preferences',
  'push.register',
  'push.unregister',
  'flag.list',
  'flag.evaluate',
  'audit.list',
  'channel.presence',
  'presence.set',
  'message.read',
]);

/** Worth nothing when they are late: never kept for later. @type {ReadonlySet<string>} */
export const MOMENTARY = new Set(['typing.set', 'location.publish']);
