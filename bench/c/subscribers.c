/* subscribers --port P --file FILE ...: fan-out. How long does each message take to each client?
 *
 *   --clients N          connections, each of which starts at FILE's present end (default 1)
 *   --messages M         messages to publish (default 1000), of --size BYTES (default 100)
 *   --rate R             messages a second; 0: the next one as soon as all clients have the last (closed loop)
 *   --produce-port Q     send the messages to a collator's raw lane there, instead of appending to FILE
 *   --replayers K        K more clients that read FILE from byte 0 meanwhile (evict it first, for cold data)
 *   --idle SECONDS       publish nothing: count the server's wake-ups and processor time for so long
 *   --quiet-seconds S    so long without any delivery, and what has not come is missing (default 10)
 *   --server-pid PID     whose processor time is reported, with its descendants; --server-pid-2 for a second one
 *
 * A message is ASCII: when it was published, its number, padding, newline. Latency runs from right before the
 * publisher's write to right after the consumer's recv, for every delivery. Numbers are checked: a delivery that
 * is not the next one of its client ends the run without figures.
 */
#include "common.h"

#define WARM_UP 20           /* messages, closed loop, not measured: everybody is connected and in the cache */
#define STAMP_DIGITS 19
#define NUMBER_DIGITS 11
#define LEAST_SIZE (STAMP_DIGITS + 1 + NUMBER_DIGITS + 1)

struct subscriber {
    int fd;
    int64_t next;     /* number of the message that it is due */
    size_t rest_bytes;
    char *rest;       /* the beginning of a message whose end has not come yet */
};

static long size, message_count, client_count, quiet_seconds, warm_up = WARM_UP;
static int publish_fd, epoll;
static bool to_socket;
static struct subscriber *subscribers;
static struct samples latencies, lateness;
static int64_t deliveries, wrong, closed;

/* ---- publishing ---------------------------------------------------------------------------------------------- */

static void put_digits(char *at, int digits, int64_t value)
{
    for (int i = digits - 1; i >= 0; i--, value /= 10) at[i] = (char)('0' + value % 10);
}

static int64_t get_digits(const char *at, int digits)
{
    int64_t value = 0;
    for (int i = 0; i < digits; i++) value = value * 10 + (at[i] - '0');
    return value;
}

static void publish(int64_t number)
{
    static char *message;
    if (!message) {
        message = malloc((size_t)size);
        memset(message, '.', (size_t)size);
        message[STAMP_DIGITS] = ' ';
        message[size - 1] = '\n';
    }
    put_digits(message + STAMP_DIGITS + 1, NUMBER_DIGITS, number);
    put_digits(message, STAMP_DIGITS, now_ns());
    if (to_socket) send_whole(publish_fd, message, (size_t)size);
    else if (write(publish_fd, message, (size_t)size) != size) fail("append");
}

static void *publish_all(void *rate)
{
    prctl(PR_SET_TIMERSLACK, 1); /* the default of 50 us would be seen at 5,000 messages a second */
    int64_t step = 1000000000 / *(long *)rate, due = now_ns();
    for (int64_t number = warm_up; number < warm_up + message_count; number++) {
        due += step;
        sleep_until_ns(due);
        add_sample(&lateness, now_ns() - due);
        publish(number);
    }
    return NULL;
}

/* ---- consuming ----------------------------------------------------------------------------------------------- */

static void account(struct subscriber *subscriber, const char *message, int64_t now)
{
    int64_t number = get_digits(message + STAMP_DIGITS + 1, NUMBER_DIGITS);
    if (number != subscriber->next) wrong++;
    subscriber->next = number + 1;
    deliveries++;
    if (number >= warm_up) add_sample(&latencies, now - get_digits(message, STAMP_DIGITS));
}

static void take(struct subscriber *subscriber)
{
    static char buffer[1 << 18];
    memcpy(buffer, subscriber->rest, subscriber->rest_bytes);
    ssize_t n = recv(subscriber->fd, buffer + subscriber->rest_bytes, sizeof buffer - subscriber->rest_bytes, MSG_DONTWAIT);
    int64_t now = now_ns();
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, subscriber->fd, NULL);
        closed++;
        return;
    }
    char *message = buffer, *end = buffer + subscriber->rest_bytes + n;
    for (; end - message >= size; message += size) account(subscriber, message, now);
    subscriber->rest_bytes = (size_t)(end - message);
    memcpy(subscriber->rest, message, subscriber->rest_bytes);
}

/* Reads until that many deliveries have come in all; false if nothing comes any more. */
static bool take_until(int64_t wanted)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    for (int quiet = 0; deliveries < wanted;) {
        int count = epoll_wait(epoll, events, EVENTS_AT_ONCE, 1000);
        for (int i = 0; i < count; i++) take(events[i].data.ptr);
        quiet = count > 0 ? 0 : quiet + 1;
        if (quiet == quiet_seconds || closed == client_count) return false;
    }
    return true;
}

static void subscribe(int port, const char *file)
{
    char header[32];
    int length = snprintf(header, sizeof header, "%ld\n", (long)size_of_file(file));
    subscribers = calloc((size_t)client_count, sizeof *subscribers);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (long i = 0; i < client_count; i++) {
        subscribers[i].fd = connect_to(port);
        subscribers[i].rest = malloc((size_t)size);
        send_whole(subscribers[i].fd, header, (size_t)length);
        watch(epoll, EPOLL_CTL_ADD, subscribers[i].fd, EPOLLIN, &subscribers[i]);
    }
}

/* ---- clients that replay meanwhile ------------------------------------------------------------------------------ */

static int replay_port, replayer_count;
static volatile int64_t replayed;
static volatile bool replay_ends;

/* Throws the bytes away in the kernel (MSG_TRUNC) and runs at a low priority: on a small machine these readers
 * stand for other machines, and must not take the processor from the readers that are measured. */
static void *replay(void *unused)
{
    (void)unused;
    setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
    struct pollfd *ready = calloc((size_t)replayer_count, sizeof *ready);
    for (int i = 0; i < replayer_count; i++) {
        ready[i] = (struct pollfd){connect_to(replay_port), POLLIN, 0};
        send_whole(ready[i].fd, "0\n", 2);
    }
    while (!replay_ends) {
        if (poll(ready, (nfds_t)replayer_count, 100) <= 0) continue;
        for (int i = 0; i < replayer_count; i++) {
            if (!ready[i].revents) continue;
            ssize_t n = recv(ready[i].fd, NULL, 1 << 20, MSG_TRUNC | MSG_DONTWAIT);
            if (n > 0) replayed += n;
            else if (n == 0 || errno != EAGAIN) ready[i].fd = -1; /* poll passes it over from now on */
        }
    }
    for (int i = 0; i < replayer_count; i++)
        if (ready[i].fd >= 0) close(ready[i].fd);
    return NULL;
}

/* ---- main ------------------------------------------------------------------------------------------------------ */

static int watch_idle(long seconds, pid_t server)
{
    usleep(1000000); /* what the connects set off has settled */
    long before = wake_ups(server);
    double cpu = cpu_seconds(server);
    usleep((useconds_t)(seconds * 1000000));
    printf("{\"clients\": %ld, \"seconds\": %ld, \"wake_ups\": %ld, \"server_cpu\": %.6f}\n", client_count, seconds,
           wake_ups(server) - before, cpu_seconds(server) - cpu);
    return 0;
}

int main(int argc, char **argv)
{
    const char *file = text_option(argc, argv, "--file", NULL);
    int port = (int)number_option(argc, argv, "--port", 0), produce_port = (int)number_option(argc, argv, "--produce-port", 0);
    if (!file || !port) usage("subscribers --port P --file FILE [options: see the head of subscribers.c]");
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    quiet_seconds = number_option(argc, argv, "--quiet-seconds", 10);
    client_count = number_option(argc, argv, "--clients", 1);
    size = number_option(argc, argv, "--size", 100);
    if (size < LEAST_SIZE) usage("--size of at least 32");
    long rate = number_option(argc, argv, "--rate", 1000);
    pid_t server = (pid_t)number_option(argc, argv, "--server-pid", 0), second = (pid_t)number_option(argc, argv, "--server-pid-2", 0);
    long idle = number_option(argc, argv, "--idle", 0);
    replayer_count = (int)number_option(argc, argv, "--replayers", 0);
    replay_port = port;
    to_socket = produce_port != 0;
    publish_fd = to_socket ? connect_to(produce_port) : open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (publish_fd < 0) fail(file);

    int64_t begin = now_ns();
    subscribe(port, file);
    double connect_seconds = (now_ns() - begin) / 1e9;
    if (idle) return watch_idle(idle, server);
    for (int64_t number = 0; number < warm_up; number++) {
        publish(number);
        if (!take_until((number + 1) * client_count)) {
            fprintf(stderr, "warm-up: %ld of %ld deliveries\n", (long)deliveries, (long)((number + 1) * client_count));
            return 1;
        }
    }
    pthread_t publisher, replayer;
    if (replayer_count) {
        pthread_create(&replayer, NULL, replay, NULL);
        while (!replayed) usleep(1000);
    }
    message_count = number_option(argc, argv, "--messages", 1000);
    double server_cpu = cpu_seconds(server) + cpu_seconds(second), own_cpu = cpu_seconds(getpid());
    int64_t wanted = deliveries + message_count * client_count, replayed_before = replayed;
    begin = now_ns();
    if (rate) {
        pthread_create(&publisher, NULL, publish_all, &rate);
        take_until(wanted);
    } else {
        for (int64_t number = warm_up; number < warm_up + message_count; number++) {
            publish(number);
            if (!take_until(wanted - (warm_up + message_count - 1 - number) * client_count)) break;
        }
    }
    double seconds = (now_ns() - begin) / 1e9;
    server_cpu = cpu_seconds(server) + cpu_seconds(second) - server_cpu;
    own_cpu = cpu_seconds(getpid()) - own_cpu;
    int64_t replayed_bytes = replayed - replayed_before;
    replay_ends = true;
    if (replayer_count) pthread_join(replayer, NULL);
    if (rate) pthread_join(publisher, NULL);

    if (wrong) {
        fprintf(stderr, "%ld deliveries were not the next message of their client\n", (long)wrong);
        return 1;
    }
    int64_t got = deliveries - warm_up * client_count;
    printf("{\"clients\": %ld, \"messages\": %ld, \"size\": %ld, \"rate\": %ld, ", client_count, message_count, size, rate);
    print_latencies(&latencies);
    if (lateness.count) {
        qsort(lateness.ns, lateness.count, sizeof *lateness.ns, ascending);
        printf("\"publisher_late_p99_us\": %.2f, ", quantile_us(&lateness, 0.99));
    }
    printf("\"deliveries\": %ld, \"missing\": %ld, \"closed\": %ld, ", (long)got,
           (long)(message_count * client_count - got), (long)closed);
    printf("\"replayed_mb_per_s\": %.1f, \"connect_seconds\": %.3f, ", replayed_bytes / 1e6 / seconds, connect_seconds);
    printf("\"seconds\": %.3f, \"deliveries_per_s\": %.0f, \"server_cpu\": %.4f, \"client_cpu\": %.4f}\n", seconds,
           got / seconds, server_cpu, own_cpu);
    return 0;
}
