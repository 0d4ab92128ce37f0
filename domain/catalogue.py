"""Everything the system can be asked, and everything it can say.

The socket, ``POST /commands/{method}``, permissions, both specification files and the client's documentation are
driven by these tables. Nothing is declared twice; what is not here does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from domain import (
    availability,
    bookings,
    calendar_sync,
    deadlines,
    dispatch,
    flags,
    invitations,
    lifecycle,
    messaging,
    notifications,
    offers,
    organisations,
    planning,
    positions,
    providers,
    reaching,
    routes,
    searches,
    security,
    series,
    series_shapes,
    session,
    slots,
    stalls,
    zones,
)
from domain.commands import Command, Mode, Who
from domain.events import EventClass
from domain.identity import Permission
from domain.views import NoParams, View


@dataclass(frozen=True, slots=True)
class EventType:
    """One fact the system tells, the shape of its data and what a slow socket may do with it."""

    name: str
    summary: str
    data: type[View]
    event_class: EventClass = EventClass.DURABLE


_ANY, _CUSTOMER, _PROVIDER, _OPERATIONS = Who.ANYBODY_SIGNED_IN, Who.CUSTOMER, Who.PROVIDER, Who.OPERATIONS
_READ, _WRITE, _KEYED, _SESSION = Mode.READ, Mode.WRITE, Mode.KEYED, Mode.SESSION
_Booking = bookings.BookingResult
_SEE, _MANAGE, _OWN = Permission.SEE_ORGANISATION, Permission.MANAGE_TECHNICIANS, Permission.MANAGE_MEMBERS
_ADMIN, _PLAN = Permission.ADMINISTER, Permission.MANAGE_AVAILABILITY

# fmt: off
_COMMANDS = (
    Command("session.connect",      "Sign in on this socket and resume.",       _ANY,        _SESSION, session.Connect,            session.Connected,           None),
    Command("session.refresh",      "Put a newer access token on this socket.", _ANY,        _SESSION, session.Refresh,            session.Refreshed,           None),
    Command("session.ack",          "Say how far each channel was handled.",    _ANY,        _SESSION, session.Ack,                session.Acked,               None),
    Command("channel.subscribe",    "Hear a channel from now on.",              _ANY,        _SESSION, session.Subscribe,          session.Subscribed,          None),
    Command("channel.unsubscribe",  "Stop hearing a channel.",                  _ANY,        _SESSION, session.ChannelRef,         session.Unsubscribed,        None),
    Command("channel.presence",     "Who hears a channel now.",                 _ANY,        _SESSION, session.ChannelRef,         session.PresenceList,        None),
    Command("presence.set",         "Choose a provider's live status.",         _PROVIDER,   _WRITE,   availability.SetPresence,   availability.PresenceResult, availability.set_presence),
    Command("booking.create",       "Book a job.",                              _CUSTOMER,   _KEYED,   bookings.CreateBooking,     _Booking,                    lifecycle.create),
    Command("booking.get",          "Look at a booking.",                       _ANY,        _READ,    bookings.BookingRef,        _Booking,                    lifecycle.get),
    Command("booking.list",         "One's bookings, newest first.",            _ANY,        _READ,    bookings.ListBookings,      bookings.BookingPage,        lifecycle.list_bookings),
    Command("booking.transition",   "Move a booking one step along its table.", _ANY,        _KEYED,   bookings.TransitionBooking, _Booking,                    lifecycle.transition),
    Command("booking.cancel",       "Cancel before the start.",                 _ANY,        _KEYED,   bookings.CancelBooking,     _Booking,                    lifecycle.cancel),
    Command("booking.reschedule",   "Move scheduled work to another time.",     _ANY,        _KEYED,   bookings.RescheduleBooking, _Booking,                    lifecycle.reschedule),
    Command("booking.assign",       "Give a waiting booking to a provider.",    _OPERATIONS, _KEYED,   bookings.AssignBooking,     _Booking,                    dispatch.assign_by_force),
    Command("offer.accept",         "Take an offered job.",                     _PROVIDER,   _KEYED,   offers.AcceptOffer,         _Booking,                    dispatch.accept),
    Command("offer.decline",        "Turn an offered job down.",                _PROVIDER,   _KEYED,   offers.DeclineOffer,        offers.DeclineResult,        dispatch.decline),
    Command("offer.list",           "One's live offers.",                       _PROVIDER,   _READ,    NoParams,                   offers.OfferList,            dispatch.list_offers),
    Command("message.send",         "Write to a booking's people.",             _ANY,        _KEYED,   messaging.SendMessage,      messaging.MessageResult,     messaging.send),
    Command("message.read",         "Move one's read mark forward.",            _ANY,        _WRITE,   messaging.ReadMessages,     messaging.ReadResult,        messaging.read),
    Command("conversation.history", "A page of a conversation.",                _ANY,        _READ,    messaging.History,          messaging.ConversationView,  messaging.history),
    Command("typing.set",           "Say that one is typing, or no longer.",    _ANY,        _WRITE,   messaging.SetTyping,        messaging.TypingResult,      messaging.set_typing),
    Command("location.publish",     "Share a position while on a job.",         _PROVIDER,   _WRITE,   positions.PublishLocation,  positions.LocationResult,    positions.publish),
    Command("service.list",         "What can be booked.",                      _ANY,        _READ,    NoParams,                   providers.ServiceList,       providers.list_services),
    Command("zone.list",            "Where.",                                   _ANY,        _READ,    NoParams,                   providers.ZoneList,          providers.list_zones),
    Command("zone.import",          "Add and change zones from GeoJSON.",       _OPERATIONS, _KEYED,   zones.ImportZones,          zones.ImportOutcome,         zones.import_zones),
    Command("zone.metrics",         "What goes on in a zone.",                  _ANY,        _READ,    zones.ZoneRef,              zones.ZoneMetrics,           zones.metrics),
    Command("zone.heat",            "Demand and supply of a zone by H3 cell.",  _OPERATIONS, _READ,    zones.HeatRef,              zones.ZoneHeat,              zones.heat),
    Command("zone.recount",         "Hold live figures against the database.",  _OPERATIONS, _WRITE,   zones.ZoneRef,              zones.Recounted,             zones.check),
    Command("provider.list",        "Every provider with its live status.",     _OPERATIONS, _READ,    NoParams,                   providers.ProviderList,      providers.list_providers),
    Command("sla.at_risk",          "Deadlines to come, soonest first.",        _OPERATIONS, _READ,    deadlines.AtRisk,           deadlines.RiskList,          deadlines.list_at_risk),
    Command("sla.list_policies",    "What is promised, as it was set.",         _OPERATIONS, _READ,    NoParams,                   deadlines.PolicyList,        deadlines.list_policies),
    Command("sla.get_policy",       "What holds for a service in a zone.",      _OPERATIONS, _READ,    deadlines.GetPolicy,        deadlines.EffectivePolicy,   deadlines.get_policy),
    Command("sla.set_policy",       "Say what is promised from now on.",        _OPERATIONS, _KEYED,   deadlines.SetPolicy,        deadlines.PolicyResult,      deadlines.set_policy),
    Command("route.plan",           "The order to do a day's jobs in.",         _ANY,        _READ,    routes.PlanRoute,           routes.RoutePlan,            routes.plan_route),
    Command("organisation.list",    "One's organisations.",                     _ANY,        _READ,    NoParams,                   organisations.OrganisationList,   organisations.list_own),
    Command("organisation.get",     "Look at an organisation.",                 _SEE,        _READ,    organisations.OrganisationRef, organisations.OrganisationResult, organisations.get),
    Command("organisation.invite",  "Ask somebody in.",                         _MANAGE,     _KEYED,   invitations.Invite,       invitations.InvitationResult, invitations.invite),
    Command("organisation.leave",   "Give up one's place.",                     _ANY,        _KEYED,   organisations.Leave,        organisations.MemberResult,  organisations.leave),
    Command("member.list",          "Everybody in an organisation.",            _SEE,        _READ,    organisations.OrganisationRef, organisations.MemberList, organisations.list_members),
    Command("member.set_role",      "Make a member something else.",            _OWN,        _KEYED,   organisations.SetMemberRole, organisations.MemberResult, organisations.set_role),
    Command("member.remove",        "Take a member's place away.",              _MANAGE,     _KEYED,   organisations.RemoveMember, organisations.MemberResult,  organisations.remove),
    Command("invitation.list",      "Invitations that wait.",                   _MANAGE,     _READ,    organisations.OrganisationRef, invitations.InvitationList, invitations.list_invitations),
    Command("invitation.issue",     "A new token, to be handed over.",          _MANAGE,     _WRITE,   invitations.InvitationRef, invitations.IssuedInvitation, invitations.issue),
    Command("invitation.revoke",    "Take an invitation back.",                 _MANAGE,     _KEYED,   invitations.RevokeInvitation, invitations.InvitationResult, invitations.revoke),
    Command("invitation.accept",    "Take up a place.",                         _ANY,        _KEYED,   invitations.AcceptInvitation, invitations.Accepted,  invitations.accept),
    Command("notification.list",    "One's notifications, newest first.",       _ANY,        _READ,    notifications.ListNotifications, notifications.NotificationPage, notifications.list_notifications),
    Command("notification.read",    "Say that one has seen a notification.",    _ANY,        _WRITE,   notifications.NotificationRef, notifications.NotificationResult, notifications.read),
    Command("notification.send",    "Tell one person something.",               _OPERATIONS, _KEYED,   notifications.SendNotification, notifications.NotificationResult, reaching.send),
    Command("notification.preferences", "How one is reached.",                  _ANY,        _READ,    NoParams,                   notifications.PreferencesResult, notifications.show_preferences),
    Command("notification.set_preferences", "Choose how one is reached.",       _ANY,        _WRITE,   notifications.SetPreferences, notifications.PreferencesResult, notifications.set_preferences),
    Command("push.register",        "Have push messages sent to this device.",  _ANY,        _WRITE,   notifications.RegisterPush, notifications.PushResult,    notifications.register_push),
    Command("push.unregister",      "Have no more sent to it.",                 _ANY,        _WRITE,   notifications.UnregisterPush, notifications.PushResult,  notifications.unregister_push),
    Command("availability.get",     "A provider's calendar, a week of it.",     _SEE,        _READ,    planning.GetAvailability,   planning.AvailabilityView,   planning.get),
    Command("availability.set_rules", "Say when a provider works.",             _PLAN,       _KEYED,   planning.SetRules,          planning.CalendarResult,     planning.set_rules),
    Command("availability.add_exception", "Close a time, or open another.",     _PLAN,       _KEYED,   planning.AddException,      planning.ExceptionResult,    planning.add_exception),
    Command("availability.remove_exception", "Go back to the rules.",           _PLAN,       _KEYED,   planning.RemoveException,   planning.ExceptionResult,    planning.remove_exception),
    Command("availability.slots",   "When a service can be had.",               _ANY,        _READ,    slots.FindSlots,            slots.SlotList,              slots.find),
    Command("slot.hold",            "Keep a free time for five minutes.",       _CUSTOMER,   _KEYED,   slots.HoldSlot,             slots.HoldResult,            slots.hold),
    Command("slot.release",         "Give a held time back.",                   _CUSTOMER,   _KEYED,   slots.ReleaseSlot,          slots.Released,              slots.release),
    Command("calendar.issue_feed",  "A new address for one's jobs as a calendar.", _PROVIDER, _WRITE,  calendar_sync.FeedRef,      calendar_sync.IssuedFeed,    calendar_sync.issue_feed),
    Command("calendar.revoke_feed", "Close that address.",                      _PROVIDER,   _WRITE,   calendar_sync.FeedRef,      calendar_sync.RevokedFeed,   calendar_sync.revoke_feed),
    Command("calendar.import",      "Bring along busy times from a file.",      _PLAN,       _KEYED,   calendar_sync.ImportCalendar, calendar_sync.SourceResult, calendar_sync.import_calendar, calendar_sync.read_calendar),
    Command("calendar.subscribe",   "Bring them along from an address.",        _PLAN,       _KEYED,   calendar_sync.SubscribeCalendar, calendar_sync.SourceResult, calendar_sync.subscribe_calendar),
    Command("calendar.list_sources", "Where busy times come from.",             _SEE,        _READ,    calendar_sync.SourcesRef,   calendar_sync.SourceList,    calendar_sync.list_sources),
    Command("calendar.remove_source", "Forget one of them.",                    _PLAN,       _KEYED,   calendar_sync.RemoveSource, calendar_sync.SourceResult,  calendar_sync.remove_source),
    Command("series.create",        "Book the same job again and again.",       _CUSTOMER,   _KEYED,   series_shapes.CreateSeries,        series_shapes.SeriesResult,         series.create),
    Command("series.get",           "Look at a series.",                        _ANY,        _READ,    series_shapes.SeriesRef,           series_shapes.SeriesResult,         series.get),
    Command("series.list",          "One's series.",                            _CUSTOMER,   _READ,    NoParams,                   series_shapes.SeriesList,           series.list_own),
    Command("series.edit",          "Move one of a series, or the rest of it.", _CUSTOMER,   _KEYED,   series_shapes.EditSeries,          series_shapes.SeriesResult,         series.edit),
    Command("series.cancel",        "Call one off, or the rest.",               _CUSTOMER,   _KEYED,   series_shapes.CancelSeries,        series_shapes.SeriesResult,         series.cancel),
    Command("flag.evaluate",        "Which features are on for oneself.",       _ANY,        _READ,    flags.EvaluateFlags,        flags.FlagAnswers,           flags.evaluate),
    Command("flag.list",            "Every feature flag.",                      _OPERATIONS, _READ,    NoParams,                   flags.FlagList,              flags.list_flags),
    Command("flag.set",             "Say for whom a feature is on.",            _ADMIN,      _KEYED,   flags.SetFlag,              flags.FlagResult,            flags.set_flag),
    Command("audit.list",           "Security events, newest first.",           _ADMIN,      _READ,    security.ListAudit,         security.AuditPage,          security.list_events),
    Command("user.sign_out",        "End every sign-in of a person.",           _ADMIN,      _KEYED,   security.SignOutUser,       security.SignedOut,          security.sign_out_user),
)
# fmt: on

_BookingEvent = bookings.BookingEventData

# fmt: off
_EVENTS = (
    EventType("booking.created",              "A customer booked.",                            _BookingEvent),
    EventType("booking.dispatch_started",     "The search for a provider began.",              _BookingEvent),
    EventType("booking.assigned",             "A provider has the job.",                       _BookingEvent),
    EventType("booking.unfulfilled",          "Nobody was found.",                             _BookingEvent),
    EventType("booking.en_route",             "The provider set out.",                         _BookingEvent),
    EventType("booking.arrived",              "The provider is there.",                        _BookingEvent),
    EventType("booking.started",              "Work began.",                                   _BookingEvent),
    EventType("booking.paused",               "Work rests.",                                   _BookingEvent),
    EventType("booking.resumed",              "Work goes on.",                                 _BookingEvent),
    EventType("booking.completed",            "The job is done.",                              _BookingEvent),
    EventType("booking.cancelled",            "Somebody called it off.",                       _BookingEvent),
    EventType("booking.reassignment_started", "The provider is off the job; a new search.",    _BookingEvent),
    EventType("booking.no_show_recorded",     "One side was not there.",                       _BookingEvent),
    EventType("booking.rescheduled",          "The job has another time.",                     _BookingEvent),
    EventType("booking.rescue_needed",        "Dispatch is out of ideas: operations, please.", _BookingEvent),
    EventType("booking.stalled",              "The driver stands still: operations, please.",  stalls.BookingStalledData),
    EventType("dispute.opened",               "A party disagrees.",                            _BookingEvent),
    EventType("dispute.resolved",             "Operations settled it.",                        _BookingEvent),
    EventType("sla.warned",                   "A deadline is near: 80 % of its time is over.", deadlines.SlaEventData),
    EventType("sla.breached",                 "A deadline was missed.",                        deadlines.SlaEventData),
    EventType("sla.met",                      "A deadline was kept.",                          deadlines.SlaEventData),
    EventType("offer.made",                   "A provider is asked.",                          offers.OfferMadeData),
    EventType("offer.accepted",               "A provider said yes.",                          offers.OfferClosedData),
    EventType("offer.declined",               "A provider said no.",                           offers.OfferClosedData),
    EventType("offer.expired",                "A provider said nothing.",                      offers.OfferClosedData),
    EventType("offer.withdrawn",              "The offer is no longer open.",                  offers.OfferClosedData),
    EventType("slot.opened",                  "A provider's time is free again.",              slots.SlotEventData,                  EventClass.LATEST),
    EventType("slot.held",                    "A customer has a time for some minutes.",       slots.SlotEventData,                  EventClass.LATEST),
    EventType("slot.booked",                  "A provider's time was given to a job.",         slots.SlotEventData,                  EventClass.LATEST),
    EventType("availability.changed",         "A provider's live status or calendar moved.",            availability.AvailabilityChangedData, EventClass.LATEST),
    EventType("presence.changed",             "The same, for live lists.",                     availability.PresenceChangedData,     EventClass.EPHEMERAL),
    EventType("message.sent",                 "Somebody wrote.",                               messaging.MessageSentData),
    EventType("receipt.updated",              "Somebody read.",                                messaging.ReceiptUpdatedData),
    EventType("typing.started",               "Somebody is typing.",                           messaging.TypingData,                 EventClass.EPHEMERAL),
    EventType("typing.stopped",               "Somebody is no longer typing.",                 messaging.TypingData,                 EventClass.EPHEMERAL),
    EventType("location.moved",               "Where the provider is.",                        positions.LocationMovedData,          EventClass.EPHEMERAL),
    EventType("eta.updated",                  "When the provider will be there.",              positions.EtaUpdatedData,             EventClass.LATEST),
    EventType("zone.metrics_updated",         "The figures of a zone moved.",                  zones.ZoneMetrics,                    EventClass.LATEST),
    EventType("zone.heat_updated",            "Demand or supply of a zone moved.",             zones.HeatUpdatedData,                EventClass.LATEST),
    EventType("series.created",               "A customer booked a series.",                   series_shapes.SeriesEventData),
    EventType("series.changed",               "A series, or one of it, is another.",           series_shapes.SeriesEventData),
    EventType("series.cancelled",             "A series was called off.",                      series_shapes.SeriesEventData),
    EventType("series.ended",                 "A series has no more to come.",                 series_shapes.SeriesEventData),
    EventType("series.instance_created",      "One of a series was booked.",                   series_shapes.InstanceEventData),
    EventType("series.instance_skipped",      "One of a series could not be booked.",          series_shapes.InstanceEventData),
    EventType("membership.created",           "Somebody joined an organisation.",              organisations.MembershipEventData),
    EventType("membership.changed",           "A member is something else now.",               organisations.MembershipEventData),
    EventType("membership.removed",           "Somebody is no longer a member.",               organisations.MembershipEventData),
    EventType("invitation.created",           "Somebody is asked in.",                         invitations.InvitationEventData),
    EventType("invitation.accepted",          "The invitation was taken up.",                  invitations.InvitationEventData),
    EventType("invitation.revoked",           "The invitation was taken back.",                invitations.InvitationEventData),
    EventType("notification.raised",          "Somebody is told outside the socket too.",      notifications.NotificationEventData),
    EventType("notification.ended",           "It was read, handled, or no longer matters.",   notifications.NotificationEventData),
    EventType("flag.updated",                 "A feature went on or off for this person.",     flags.FlagUpdatedData,                EventClass.EPHEMERAL),
    EventType("security.event_recorded",      "The audit log has a new row.",                  security.SecurityEventRecordedData),
)
# fmt: on

COMMANDS = MappingProxyType({command.name: command for command in _COMMANDS})
"""Every command by name."""

EVENTS = MappingProxyType({event.name: event for event in _EVENTS})
"""Every event clients can hear, by type."""

TIMERS = MappingProxyType(
    {
        searches.DISPATCH: dispatch.advance,
        searches.RESCUE: dispatch.rescue_over,
        deadlines.TIMER: deadlines.clock_due,
        stalls.TIMER: stalls.check,
        availability.LINGER: availability.linger_over,
        reaching.TIMER: reaching.unheard,
        slots.HOLD: slots.ran_out,
        series.SERIES: series.make_instances,
    }
)
"""What a durable timer of each kind does when it is due."""
