/* common.h: what the measuring tools and the reference loops share.
 *
 * Law: a tool prints one line of JSON with its results on standard output and nothing else there; what went
 * wrong goes to standard error, and then the exit status is not 0. It knows one machine: every server is on
 * 127.0.0.1, so publisher, server and consumer read the same monotonic clock.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))
#define EVENTS_AT_ONCE 1024

/* ---- failing --------------------------------------------------------------------------------------------- */

/* A tool that cannot measure must not print a figure. */
__attribute__((noreturn)) UNUSED static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

__attribute__((noreturn)) UNUSED static void usage(const char *text)
{
    fprintf(stderr, "usage: %s\n", text);
    exit(2);
}

/* ---- time ------------------------------------------------------------------------------------------------ */

UNUSED static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    return clock_gettime(clock, &t) ? 0 : t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

UNUSED static int64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

UNUSED static void sleep_until_ns(int64_t t)
{
    struct timespec until = {t / 1000000000, t % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
}

/* ---- options: `--name value`, or `--name` alone for a switch ----------------------------------------------- */

UNUSED static const char *text_option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 1; i < argc - 1; i++)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return otherwise;
}

UNUSED static long number_option(int argc, char **argv, const char *name, long otherwise)
{
    const char *text = text_option(argc, argv, name, NULL);
    return text ? strtol(text, NULL, 10) : otherwise;
}

UNUSED static bool has_switch(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], name)) return true;
    return false;
}

/* ---- what a process costs ---------------------------------------------------------------------------------- */

/* Calls visit(pid) for pid and all its descendants: a supervisor's work is its workers' work. */
UNUSED static void each_process(pid_t pid, void (*visit)(pid_t, void *), void *state)
{
    char path[300];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    if (!threads) return;
    visit(pid, state);
    for (struct dirent *thread; (thread = readdir(threads));) {
        if (!isdigit((unsigned char)thread->d_name[0])) continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/children", pid, thread->d_name);
        FILE *children = fopen(path, "r");
        if (!children) continue;
        for (int child; fscanf(children, "%d", &child) == 1;) each_process(child, visit, state);
        fclose(children);
    }
    closedir(threads);
}

static void add_cpu_ns(pid_t pid, void *state)
{
    clockid_t clock;
    if (clock_getcpuclockid(pid, &clock) == 0) *(int64_t *)state += clock_ns(clock);
}

/* Processor seconds, user and system, of a process with its threads and descendants. The process clock counts
 * nanoseconds, where /proc/PID/stat counts ticks of 10 ms: too coarse for a run of a second. */
UNUSED static double cpu_seconds(pid_t pid)
{
    int64_t ns = 0;
    if (pid > 0) each_process(pid, add_cpu_ns, &ns);
    return ns / 1e9;
}

static void add_switches(pid_t pid, void *state)
{
    char path[300], line[256];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    if (!threads) return;
    for (struct dirent *thread; (thread = readdir(threads));) {
        if (!isdigit((unsigned char)thread->d_name[0])) continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/status", pid, thread->d_name);
        FILE *status = fopen(path, "r");
        if (!status) continue;
        while (fgets(line, sizeof line, status)) {
            long n;
            if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1) *(long *)state += n;
        }
        fclose(status);
    }
    closedir(threads);
}

/* How often the threads of a process and its descendants went to sleep: each wake-up ends with one such switch. */
UNUSED static long wake_ups(pid_t pid)
{
    long n = 0;
    if (pid > 0) each_process(pid, add_switches, &n);
    return n;
}

/* ---- sockets --------------------------------------------------------------------------------------------- */

UNUSED static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) fail("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) fail("setrlimit");
}

UNUSED static int connect_to(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* A listening socket on 127.0.0.1; *port is the port asked for (0: the kernel chooses) and becomes the port got. */
UNUSED static int listen_on(int *port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) || listen(fd, 4096)) fail("listen");
    if (getsockname(fd, (struct sockaddr *)&address, &length)) fail("getsockname");
    *port = ntohs(address.sin_port);
    return fd;
}

/* Readiness as our daemons tell it: one line of JSON on the descriptor that --ready-fd names. */
UNUSED static void tell_ready(int fd, int port)
{
    if (fd < 0) return;
    dprintf(fd, "{\"addresses\": [\"127.0.0.1:%d\"]}\n", port);
    close(fd);
}

UNUSED static void send_whole(int fd, const char *bytes, size_t length)
{
    while (length) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd full = {fd, POLLOUT, 0};
            poll(&full, 1, -1);
            continue;
        }
        if (n < 0) fail("send");
        bytes += n;
        length -= (size_t)n;
    }
}

UNUSED static void watch(int epoll, int how, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, how, fd, &event)) fail("epoll_ctl");
}

UNUSED static int64_t size_of_file(const char *path)
{
    struct stat status;
    return stat(path, &status) ? 0 : status.st_size;
}

/* ---- samples ------------------------------------------------------------------------------------------------ */

struct samples {
    int64_t *ns;
    size_t count, room;
};

UNUSED static void add_sample(struct samples *samples, int64_t ns)
{
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 1 << 16;
        samples->ns = realloc(samples->ns, samples->room * sizeof *samples->ns);
        if (!samples->ns) fail("realloc");
    }
    samples->ns[samples->count++] = ns;
}

static int ascending(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static double quantile_us(const struct samples *sorted, double q)
{
    return sorted->ns[(size_t)(q * (double)(sorted->count - 1))] / 1e3;
}

/* Prints quantiles in microseconds as members of a JSON object, each followed by a comma. */
UNUSED static void print_latencies(struct samples *samples)
{
    if (!samples->count) return;
    qsort(samples->ns, samples->count, sizeof *samples->ns, ascending);
    printf("\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f, ", quantile_us(samples, 0.5),
           quantile_us(samples, 0.99), quantile_us(samples, 0.999), quantile_us(samples, 1));
}

#endif
