/* broadcast_floor FILE [--port P] [--ready-fd N]: the least that a broadcaster can do.
 *
 * Epoll, inotify and sendfile in one thread: what the kernel charges for the work, and so the floor to measure
 * tailsrv against. It speaks "START\n" (N or -N) and has no manners: no limits, no log, no timeout, no commit
 * mark, and a header must come in one piece.
 */
#include "common.h"
#include <sys/inotify.h>
#include <sys/sendfile.h>

#define MOST_CLIENTS 65536
/* Up to here an append is read once and sent to all: cheaper than a sendfile for each. */
#define SMALL_APPEND 65536

enum state { WAITS_FOR_HEADER, BEHIND, CAUGHT_UP };

struct client {
    off_t at;       /* the next byte of FILE that it is due */
    int place;      /* where it stands in caught_up[] */
    enum state state;
};

static struct client clients[MOST_CLIENTS]; /* by descriptor */
static int caught_up[MOST_CLIENTS], caught_up_count;
static int epoll, file;
static off_t length;

static void interest(int fd, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(epoll, how, fd, &event);
}

static void leave_caught_up(int fd)
{
    int last = caught_up[--caught_up_count];
    caught_up[clients[fd].place] = last;
    clients[last].place = clients[fd].place;
}

static void drop(int fd)
{
    if (clients[fd].state == CAUGHT_UP) leave_caught_up(fd);
    clients[fd].state = WAITS_FOR_HEADER;
    close(fd);
}

/* Sends until the client has the whole file or its socket is full; moves it to the state that follows. */
static void pump(int fd)
{
    struct client *client = &clients[fd];
    while (client->at < length)
        if (sendfile(fd, file, &client->at, (size_t)(length - client->at)) <= 0) break;
    if (client->at >= length) {
        if (client->state == CAUGHT_UP) return;
        client->state = CAUGHT_UP;
        client->place = caught_up_count;
        caught_up[caught_up_count++] = fd;
        interest(fd, EPOLL_CTL_MOD, 0); /* errors and hang-ups are reported all the same */
    } else if (errno == EAGAIN) {
        if (client->state == CAUGHT_UP) leave_caught_up(fd);
        client->state = BEHIND;
        interest(fd, EPOLL_CTL_MOD, EPOLLOUT);
    } else {
        drop(fd);
    }
}

static void file_grew(int inotify)
{
    static char ignored[4096] __attribute__((aligned(8))), fresh[SMALL_APPEND];
    struct stat status;
    if (read(inotify, ignored, sizeof ignored) < 0 || fstat(file, &status)) return;
    off_t before = length;
    length = status.st_size;
    off_t grown = length - before;
    if (grown <= 0) return;
    bool small = grown <= SMALL_APPEND && pread(file, fresh, (size_t)grown, before) == grown;
    /* Backwards: a client that leaves the list is replaced by the last one, which has been served already. */
    for (int i = caught_up_count - 1; i >= 0; i--) {
        int fd = caught_up[i];
        if (small) {
            ssize_t n = send(fd, fresh, (size_t)grown, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n > 0) clients[fd].at += n;
            if (n == grown) continue;
        }
        pump(fd);
    }
}

static void accept_all(int listener)
{
    int one = 1;
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        clients[fd] = (struct client){.state = WAITS_FOR_HEADER};
        interest(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void serve(int fd, uint32_t events)
{
    if (events & (EPOLLHUP | EPOLLERR)) {
        drop(fd);
        return;
    }
    if (clients[fd].state == WAITS_FOR_HEADER) {
        char header[65];
        ssize_t n = recv(fd, header, sizeof header - 1, 0);
        if (n <= 0) {
            drop(fd);
            return;
        }
        header[n] = 0;
        off_t start = strtol(header, NULL, 10);
        clients[fd].at = start >= 0 ? start : length + start > 0 ? length + start : 0;
        clients[fd].state = BEHIND;
    }
    pump(fd);
}

int main(int argc, char **argv)
{
    if (argc < 2) usage("broadcast_floor FILE [--port P] [--ready-fd N]");
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    file = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (file < 0) fail(argv[1]);
    int inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (inotify < 0 || inotify_add_watch(inotify, argv[1], IN_MODIFY) < 0) fail("inotify");
    length = size_of_file(argv[1]);
    int port = (int)number_option(argc, argv, "--port", 0), listener = listen_on(&port);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    interest(listener, EPOLL_CTL_ADD, EPOLLIN);
    interest(inotify, EPOLL_CTL_ADD, EPOLLIN);
    tell_ready((int)number_option(argc, argv, "--ready-fd", -1), port);
    struct epoll_event events[EVENTS_AT_ONCE];
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) accept_all(listener);
            else if (fd == inotify) file_grew(inotify);
            else serve(fd, events[i].events);
        }
    }
}
