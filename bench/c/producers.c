/* producers --port P --file FILE ...: many producers on one thread, as fast as the server takes their messages.
 *
 *   --connections N      busy producers (default 1)
 *   --idle M             more connections that are made, introduce themselves, and then stay silent
 *   --acked              the acknowledged lane: "NAME\n", then "ACKED AT\n" lines are read; otherwise the raw lane
 *   --window W           acknowledged lane: messages of one connection that may be unacknowledged; with 1 the time
 *                        from send to acknowledgement of every message is reported
 *   --framing F          newline (default), nul, u16be, u32be, u32le, varint; --size BYTES of a whole message (100)
 *   --seconds S          how long to send (a number of milliseconds with --milliseconds)
 *   --server-pid PID     whose processor time is reported
 *
 * On the raw lane the time runs until FILE has grown by all that was sent; on the acknowledged one until the last
 * message is acknowledged. Every producer ends on a message boundary.
 */
#include "common.h"

#define BLOCK_BYTES (1 << 20)
#define SEND_BYTES (256 << 10) /* at most so much at once, so that connections take turns */
#define GIVE_UP_NS INT64_C(20000000000)

struct producer {
    int fd;
    int64_t sent, acked; /* bytes of its stream */
    int64_t sent_at;
    uint32_t interest;
    size_t line_bytes;
    char line[64];
};

static long size;
static char *block; /* whole messages, again and again */
static int64_t block_bytes, window;
static bool acked_lane, stopping;
static struct samples latencies;

static size_t put_prefix(char *at, const char *framing, size_t total)
{
    if (!strcmp(framing, "u16be")) {
        size_t payload = total - 2;
        at[0] = (char)(payload >> 8), at[1] = (char)payload;
        return 2;
    }
    if (!strcmp(framing, "u32be") || !strcmp(framing, "u32le")) {
        uint32_t payload = (uint32_t)total - 4, wire = framing[3] == 'b' ? htobe32(payload) : htole32(payload);
        memcpy(at, &wire, 4);
        return 4;
    }
    if (!strcmp(framing, "varint")) {
        size_t length = 1;
        while ((total - length) >> (7 * length)) length++;
        for (size_t i = 0, payload = total - length; i < length; i++, payload >>= 7)
            at[i] = (char)((payload & 0x7f) | (i + 1 < length ? 0x80 : 0));
        return length;
    }
    return 0;
}

static void make_block(const char *framing)
{
    block_bytes = size > BLOCK_BYTES ? size : BLOCK_BYTES - BLOCK_BYTES % size;
    block = malloc((size_t)block_bytes);
    memset(block, 'x', (size_t)block_bytes);
    for (char *message = block; message < block + block_bytes; message += size)
        if (!put_prefix(message, framing, (size_t)size)) message[size - 1] = strcmp(framing, "nul") ? '\n' : 0;
}

static void introduce(int fd, const char *kind, long number)
{
    char text[64];
    int length = snprintf(text, sizeof text, "%s-%d-%ld\n", kind, getpid(), number);
    send_whole(fd, text, (size_t)length);
    for (char last = 0; last != '\n';)
        if (recv(fd, &last, 1, 0) != 1) fail("no answer to the name");
}

/* How many bytes it may send now: whole messages while there is time, and always the rest of one that was begun. */
static int64_t allowance(const struct producer *producer)
{
    int64_t begun = producer->sent % size;
    if (stopping) return begun ? size - begun : 0;
    return acked_lane ? producer->acked + window - producer->sent : SEND_BYTES;
}

static void set_interest(int epoll, struct producer *producer, uint32_t events)
{
    if (producer->interest == events) return;
    producer->interest = events;
    watch(epoll, EPOLL_CTL_MOD, producer->fd, events, producer);
}

static void feed(int epoll, struct producer *producer)
{
    int64_t may = allowance(producer), from = producer->sent % block_bytes;
    if (may > SEND_BYTES) may = SEND_BYTES;
    if (may > block_bytes - from) may = block_bytes - from;
    if (may > 0) {
        if (window == size) producer->sent_at = now_ns();
        ssize_t n = send(producer->fd, block + from, (size_t)may, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) fail("send");
        if (n > 0) producer->sent += n;
    }
    set_interest(epoll, producer, EPOLLIN | (allowance(producer) > 0 ? EPOLLOUT : 0u));
}

static void hear(struct producer *producer)
{
    char bytes[16384];
    ssize_t n = recv(producer->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) fail("closed by the server");
    int64_t before = producer->acked;
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] != '\n') {
            if (producer->line_bytes < sizeof producer->line - 1) producer->line[producer->line_bytes++] = bytes[i];
            continue;
        }
        producer->line[producer->line_bytes] = 0;
        if (!isdigit((unsigned char)producer->line[0])) {
            fprintf(stderr, "the server says: %s\n", producer->line);
            exit(1);
        }
        producer->acked = strtol(producer->line, NULL, 10);
        producer->line_bytes = 0;
    }
    if (window == size && producer->acked > before) add_sample(&latencies, now_ns() - producer->sent_at);
}

static bool all_arrived(const struct producer *producers, long count, const char *file, int64_t base)
{
    int64_t sent = 0, acked = 0;
    for (long i = 0; i < count; i++) {
        if (producers[i].sent % size) return false;
        sent += producers[i].sent;
        acked += producers[i].acked;
    }
    return (acked_lane ? acked : size_of_file(file) - base) >= sent;
}

int main(int argc, char **argv)
{
    int port = (int)number_option(argc, argv, "--port", 0);
    const char *file = text_option(argc, argv, "--file", NULL), *framing = text_option(argc, argv, "--framing", "newline");
    if (!port || !file) usage("producers --port P --file FILE [options: see the head of producers.c]");
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    long count = number_option(argc, argv, "--connections", 1), idle = number_option(argc, argv, "--idle", 0);
    long milliseconds = number_option(argc, argv, "--milliseconds", number_option(argc, argv, "--seconds", 1) * 1000);
    pid_t server = (pid_t)number_option(argc, argv, "--server-pid", 0);
    size = number_option(argc, argv, "--size", 100);
    acked_lane = has_switch(argc, argv, "--acked");
    window = acked_lane ? number_option(argc, argv, "--window", 1000) * size : 0;
    make_block(framing);

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct producer *producers = calloc((size_t)count, sizeof *producers);
    for (long i = 0; i < idle; i++) {
        int fd = connect_to(port); /* stays open until the process ends */
        if (acked_lane) introduce(fd, "idle", i);
    }
    for (long i = 0; i < count; i++) {
        producers[i].fd = connect_to(port);
        if (acked_lane) introduce(producers[i].fd, "busy", i);
    }
    int64_t base = size_of_file(file);
    double server_cpu = cpu_seconds(server), own_cpu = cpu_seconds(getpid());
    int64_t begin = now_ns(), end = begin + milliseconds * 1000000, now;
    for (long i = 0; i < count; i++) {
        producers[i].interest = EPOLLIN | EPOLLOUT;
        watch(epoll, EPOLL_CTL_ADD, producers[i].fd, EPOLLIN | EPOLLOUT, &producers[i]);
    }
    struct epoll_event events[EVENTS_AT_ONCE];
    for (;;) {
        now = now_ns();
        if (now > end) {
            stopping = true;
            if (all_arrived(producers, count, file, base)) break;
            if (now > end + GIVE_UP_NS) {
                fprintf(stderr, "not everything arrived: the file grew by %ld bytes\n", (long)(size_of_file(file) - base));
                return 1;
            }
        }
        int ready = epoll_wait(epoll, events, EVENTS_AT_ONCE, 1);
        for (int i = 0; i < ready; i++) {
            struct producer *producer = events[i].data.ptr;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) hear(producer);
            feed(epoll, producer);
        }
    }
    double seconds = (now - begin) / 1e9;
    int64_t sent = 0;
    for (long i = 0; i < count; i++) sent += producers[i].sent;
    printf("{\"connections\": %ld, \"idle\": %ld, \"size\": %ld, \"window\": %ld, ", count, idle, size, (long)(window / size));
    print_latencies(&latencies);
    printf("\"messages\": %ld, \"seconds\": %.4f, \"messages_per_s\": %.0f, \"mb_per_s\": %.2f, \"server_cpu\": %.4f, \"client_cpu\": %.4f}\n",
           (long)(sent / size), seconds, sent / size / seconds, sent / 1e6 / seconds, cpu_seconds(server) - server_cpu,
           cpu_seconds(getpid()) - own_cpu);
    return 0;
}
