/* collate_floor FILE [--port P] [--sync] [--acks] [--ready-fd N]: the least that a collator can do.
 *
 * One thread: epoll, one recv for each readable producer, its last newline, one writev for all that came in one
 * round; then, with --sync, one fdatasync (group commit), and with --acks "ACKED AT\n" to each producer that was
 * in it, after a "NAME\n" of its own that is answered "0 0\n". No journal, no commit mark, no limits, no names
 * that are remembered: the floor to measure tailsrv-collate against. Newline framing alone.
 */
#include "common.h"

#define MOST_PRODUCERS 65536
#define RECEIVE_BYTES (256 << 10)
#define BATCH_BYTES (1 << 20) /* written while it is still in the cache: 4 MiB were half as fast with many producers */
#define BATCH_PIECES 1000 /* below IOV_MAX */

struct producer {
    char *rest; /* the beginning of a message whose end has not come yet */
    size_t rest_bytes, rest_room;
    int64_t committed; /* bytes of its stream */
    bool named, in_batch;
};

static struct producer producers[MOST_PRODUCERS]; /* by descriptor */
static char batch[BATCH_BYTES];
static size_t batch_bytes;
static struct iovec pieces[BATCH_PIECES];
static int piece_count;
static char *spent[BATCH_PIECES]; /* rests that a piece points at, to be freed after the write */
static int spent_count;
static int in_batch[MOST_PRODUCERS], in_batch_count;
static int file;
static int64_t file_bytes;
static bool sync_each, acks;

static void commit(void)
{
    int first = 0;
    while (first < piece_count) {
        ssize_t n = writev(file, pieces + first, piece_count - first);
        if (n < 0) fail("writev");
        file_bytes += n;
        while (first < piece_count && (size_t)n >= pieces[first].iov_len) n -= (ssize_t)pieces[first++].iov_len;
        if (first < piece_count) {
            pieces[first].iov_base = (char *)pieces[first].iov_base + n;
            pieces[first].iov_len -= (size_t)n;
        }
    }
    if (piece_count && sync_each && fdatasync(file)) fail("fdatasync");
    for (int i = 0; i < spent_count; i++) free(spent[i]);
    for (int i = 0; i < in_batch_count; i++) {
        int fd = in_batch[i];
        if (acks && producers[fd].in_batch) {
            char line[48];
            int n = snprintf(line, sizeof line, "%ld %ld\n", (long)producers[fd].committed, (long)file_bytes);
            send(fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        producers[fd].in_batch = false;
    }
    piece_count = spent_count = in_batch_count = 0;
    batch_bytes = 0;
}

static void add_piece(int fd, char *bytes, size_t length)
{
    pieces[piece_count++] = (struct iovec){bytes, length};
    producers[fd].committed += (int64_t)length;
}

static void keep_rest(struct producer *producer, const char *bytes, size_t length)
{
    size_t needed = producer->rest_bytes + length;
    if (needed > producer->rest_room) {
        producer->rest_room = needed * 2;
        producer->rest = realloc(producer->rest, producer->rest_room);
        if (!producer->rest) fail("realloc");
    }
    memcpy(producer->rest + producer->rest_bytes, bytes, length);
    producer->rest_bytes = needed;
}

static void goodbye(int fd)
{
    if (producers[fd].in_batch) commit(); /* before its descriptor can belong to another producer */
    free(producers[fd].rest);
    producers[fd] = (struct producer){0};
    close(fd);
}

static void take(int fd)
{
    struct producer *producer = &producers[fd];
    if (BATCH_BYTES - batch_bytes < RECEIVE_BYTES || piece_count > BATCH_PIECES - 3) commit();
    char *bytes = batch + batch_bytes;
    ssize_t n = recv(fd, bytes, RECEIVE_BYTES, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        goodbye(fd);
        return;
    }
    batch_bytes += (size_t)n;
    char *end = bytes + n;
    if (acks && !producer->named) {
        char *newline = memchr(bytes, '\n', (size_t)n);
        if (!newline) return;
        producer->named = true;
        send(fd, "0 0\n", 4, MSG_NOSIGNAL | MSG_DONTWAIT);
        bytes = newline + 1;
    }
    char *last = memrchr(bytes, '\n', (size_t)(end - bytes));
    if (last) {
        if (producer->rest_bytes) {
            add_piece(fd, producer->rest, producer->rest_bytes);
            spent[spent_count++] = producer->rest;
            producer->rest = NULL;
            producer->rest_bytes = producer->rest_room = 0;
        }
        add_piece(fd, bytes, (size_t)(last + 1 - bytes));
        if (!producer->in_batch) {
            producer->in_batch = true;
            in_batch[in_batch_count++] = fd;
        }
        bytes = last + 1;
    }
    if (bytes < end) keep_rest(producer, bytes, (size_t)(end - bytes));
}

int main(int argc, char **argv)
{
    if (argc < 2) usage("collate_floor FILE [--port P] [--sync] [--acks] [--ready-fd N]");
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    sync_each = has_switch(argc, argv, "--sync");
    acks = has_switch(argc, argv, "--acks");
    file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (file < 0) fail(argv[1]);
    file_bytes = size_of_file(argv[1]);
    int port = (int)number_option(argc, argv, "--port", 0), listener = listen_on(&port), one = 1;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS_AT_ONCE];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    tell_ready((int)number_option(argc, argv, "--ready-fd", -1), port);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd != listener) {
                take(events[i].data.fd);
                continue;
            }
            for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event.data.fd = fd;
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            }
        }
        commit();
    }
}
