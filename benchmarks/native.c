/* The two loops that must cost next to nothing: the receiving end of a fan-out, and the yardstick that sends.
 *
 * Built on the spot as a shared library and called through ctypes, which lets go of the interpreter lock meanwhile.
 * Frames are those of RFC 6455 section 5.2; a peer's payload is skipped, never copied.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { CHUNK = 256 * 1024, EVENTS = 512, HEADER = 14 };

typedef struct {
    int fd;
    int header_length;
    uint64_t skip;     /* bytes of the present payload that have not arrived */
    uint64_t frames;   /* finished text, binary and continuation frames */
    uint64_t payload;  /* bytes of their payloads */
    int control;       /* the frame being read is a ping, pong or close */
    int closed;        /* end of stream, or a close frame */
    int muted;         /* not read at all: a stalled client */
    unsigned char header[HEADER];
} peer;

typedef struct {
    int epoll;
    int count;
    peer *peers;
    unsigned char *chunk;
} sink;

static int64_t now_ns(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (int64_t)moment.tv_sec * 1000000000 + moment.tv_nsec;
}

sink *sink_new(const int *fds, int count)
{
    sink *self = calloc(1, sizeof *self);
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    self->count = count;
    self->peers = calloc((size_t)count, sizeof *self->peers);
    self->chunk = malloc(CHUNK);
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        self->peers[i].fd = fds[i];
        epoll_ctl(self->epoll, EPOLL_CTL_ADD, fds[i], &event);
    }
    return self;
}

void sink_free(sink *self)
{
    /* close(2) of the epoll descriptor is the caller's: it has it from sink_epoll. */
    free(self->peers);
    free(self->chunk);
    free(self);
}

int sink_epoll(const sink *self) { return self->epoll; }
uint64_t sink_frames(const sink *self, int i) { return self->peers[i].frames; }
uint64_t sink_payload(const sink *self, int i) { return self->peers[i].payload; }
int sink_closed(const sink *self, int i) { return self->peers[i].closed; }

void sink_mute(sink *self, int i, int muted)
{
    struct epoll_event event = {.events = muted ? 0 : EPOLLIN, .data.u32 = (uint32_t)i};
    self->peers[i].muted = muted;
    epoll_ctl(self->epoll, EPOLL_CTL_MOD, self->peers[i].fd, &event);
}

/* Takes bytes as they came; returns how many data frames ended in them. */
static uint64_t feed(peer *p, const unsigned char *at, size_t length)
{
    const unsigned char *end = at + length;
    uint64_t before = p->frames;
    while (at < end) {
        if (p->skip) {
            uint64_t part = (uint64_t)(end - at) < p->skip ? (uint64_t)(end - at) : p->skip;
            at += part;
            p->skip -= part;
            if (!p->control)
                p->payload += part;
            if (!p->skip && !p->control)
                p->frames++;
            continue;
        }
        p->header[p->header_length++] = *at++;
        if (p->header_length < 2)
            continue;
        int announced = p->header[1] & 0x7f;
        int more = announced == 126 ? 2 : announced == 127 ? 8 : 0;
        if (p->header_length < 2 + more)
            continue;
        uint64_t size = more ? 0 : (uint64_t)announced;
        for (int i = 0; i < more; i++)
            size = size << 8 | p->header[2 + i];
        p->control = (p->header[0] & 0x08) != 0;
        if ((p->header[0] & 0x0f) == 0x08)
            p->closed = 1;
        p->header_length = 0;
        p->skip = size;
        if (!size && !p->control)
            p->frames++;
    }
    return p->frames - before;
}

/* For tests: bytes from memory in place of a socket. */
uint64_t sink_feed(sink *self, int i, const unsigned char *bytes, size_t length)
{
    return feed(&self->peers[i], bytes, length);
}

/* Receives until every peer that is not muted has `frames` data frames, counted since sink_new.
 *
 * nap_us: pause after each round of events, so that thousands of wake-ups do not become the measurement; 0 where
 *         arrival times matter.
 * stamps: if not NULL, stamps[i * width + k] becomes the arrival (monotonic ns) of frame `first + k` of peer i.
 * Returns the arrival of the last frame in monotonic ns, -1 at the deadline, -2 on an error, -3 as soon as a peer that
 * is not muted was closed.
 */
int64_t sink_until(sink *self, uint64_t frames, int timeout_ms, int nap_us, int64_t *stamps, int width, uint64_t first)
{
    struct epoll_event events[EVENTS];
    int64_t deadline = now_ns() + (int64_t)timeout_ms * 1000000, last = now_ns();
    int left = 0;
    for (int i = 0; i < self->count; i++)
        left += !self->peers[i].muted && self->peers[i].frames < frames;
    while (left > 0) {
        int ready = epoll_wait(self->epoll, events, EVENTS, 20);
        if (ready < 0 && errno != EINTR)
            return -2;
        if (ready <= 0) {
            if (now_ns() > deadline)
                return -1;
            continue;
        }
        for (int e = 0; e < ready; e++) {
            int i = (int)events[e].data.u32;
            peer *p = &self->peers[i];
            if (p->muted)
                continue;
            int lacked = p->frames < frames;
            ssize_t got = recv(p->fd, self->chunk, CHUNK, MSG_DONTWAIT);
            if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                continue;
            if (got <= 0) {
                p->closed = 1;
                epoll_ctl(self->epoll, EPOLL_CTL_DEL, p->fd, NULL);
            } else {
                uint64_t before = p->frames;
                feed(p, self->chunk, (size_t)got);
                last = now_ns();
                if (stamps)
                    for (uint64_t k = before; k < p->frames; k++)
                        if (k >= first && k - first < (uint64_t)width)
                            stamps[(size_t)i * (size_t)width + (size_t)(k - first)] = last;
            }
            if (p->closed)
                return -3;
            left -= lacked && p->frames >= frames;
        }
        if (now_ns() > deadline)
            return -1;
        if (nap_us) {
            struct timespec nap = {0, nap_us * 1000L};
            nanosleep(&nap, NULL);
        }
    }
    return last;
}

/* The yardstick: the same bytes to every socket, `turns` times. Returns 0, or the errno that stopped it. */
int send_turns(const int *fds, int count, const unsigned char *data, size_t length, int turns)
{
    for (int turn = 0; turn < turns; turn++)
        for (int i = 0; i < count; i++) {
            size_t done = 0;
            while (done < length) {
                ssize_t sent = send(fds[i], data + done, length - done, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (sent >= 0) {
                    done += (size_t)sent;
                } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                    struct pollfd writable = {.fd = fds[i], .events = POLLOUT};
                    poll(&writable, 1, 1000);
                } else if (errno != EINTR) {
                    return errno;
                }
            }
        }
    return 0;
}
