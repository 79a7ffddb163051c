/* replay --port P --bytes B [--clients N] [--http PATH] [--discard] [--server-pid PID]: catching up.
 *
 * N clients read the first B bytes of a stream from byte 0, all at once. With --http they ask a web server for
 * PATH instead (whose head is some hundred bytes more). The bytes are copied to user space as any consumer would;
 * with --discard the kernel throws them away (MSG_TRUNC), so that the reader is not what is measured.
 */
#include "common.h"

#define RECEIVE_BYTES (1 << 20)
#define GIVE_UP_MS 10000

int main(int argc, char **argv)
{
    int port = (int)number_option(argc, argv, "--port", 0);
    int64_t wanted = number_option(argc, argv, "--bytes", 0);
    if (!port || !wanted) usage("replay --port P --bytes B [--clients N] [--http PATH] [--discard] [--server-pid PID]");
    signal(SIGPIPE, SIG_IGN);
    long count = number_option(argc, argv, "--clients", 1);
    const char *http = text_option(argc, argv, "--http", NULL);
    bool discard = has_switch(argc, argv, "--discard");
    pid_t server = (pid_t)number_option(argc, argv, "--server-pid", 0);
    char header[1024], *buffer = malloc(RECEIVE_BYTES);
    int length = http ? snprintf(header, sizeof header, "GET %s HTTP/1.0\r\n\r\n", http) : snprintf(header, sizeof header, "0\n");

    struct client { int fd; int64_t got; } *clients = calloc((size_t)count, sizeof *clients);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    for (long i = 0; i < count; i++) {
        clients[i].fd = connect_to(port);
        watch(epoll, EPOLL_CTL_ADD, clients[i].fd, EPOLLIN, &clients[i]);
    }
    double server_cpu = cpu_seconds(server), own_cpu = cpu_seconds(getpid());
    int64_t begin = now_ns(), total = 0;
    for (long i = 0; i < count; i++) send_whole(clients[i].fd, header, (size_t)length);
    struct epoll_event events[EVENTS_AT_ONCE];
    for (long done = 0; done < count;) {
        int ready = epoll_wait(epoll, events, EVENTS_AT_ONCE, GIVE_UP_MS);
        if (ready <= 0) {
            fprintf(stderr, "nothing came for %d ms; %ld of %ld bytes so far\n", GIVE_UP_MS, (long)total, (long)(wanted * count));
            return 1;
        }
        for (int i = 0; i < ready; i++) {
            struct client *client = events[i].data.ptr;
            ssize_t n = recv(client->fd, discard ? NULL : buffer, RECEIVE_BYTES, MSG_DONTWAIT | (discard ? MSG_TRUNC : 0));
            if (n < 0 && errno == EAGAIN) continue;
            if (n > 0) client->got += n, total += n;
            if (n > 0 && client->got < wanted) continue;
            if (client->got < wanted) {
                fprintf(stderr, "closed after %ld of %ld bytes\n", (long)client->got, (long)wanted);
                return 1;
            }
            epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL);
            done++;
        }
    }
    double seconds = (now_ns() - begin) / 1e9;
    printf("{\"clients\": %ld, \"bytes\": %ld, \"seconds\": %.4f, \"mb_per_s\": %.1f, \"server_cpu\": %.4f, \"client_cpu\": %.4f}\n",
           count, (long)total, seconds, total / 1e6 / seconds, cpu_seconds(server) - server_cpu, cpu_seconds(getpid()) - own_cpu);
    return 0;
}
