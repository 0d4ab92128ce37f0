/* The loop of a fan-out: one send() per socket and nothing else. See fanout.py. */

#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* Python ignores SIGPIPE anyway */
#endif

/* Offers the bytes to each of count sockets (-1: none), without waiting. taken[i] becomes how many the i-th took, 0 when
   it is full or its peer is gone. Returns how many did not take all. */
int write_each(const int *fds, int count, const char *data, size_t size, int64_t *taken)
{
    int fell_short = 0;
    for (int i = 0; i < count; i++) {
        ssize_t sent = -1;
        if (fds[i] >= 0) {
            do {
                sent = send(fds[i], data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
            } while (sent < 0 && errno == EINTR);
        }
        taken[i] = sent < 0 ? 0 : sent;
        fell_short += (size_t)taken[i] != size;
    }
    return fell_short;
}
