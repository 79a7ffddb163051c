/* lookups --port P --messages M [--lookups N] [--depth D] [--size BYTES] [--server-pid PID]: random access.
 *
 * One client asks tailsrv-index for the byte offsets of N messages chosen at random from M. With --depth 1 one
 * request is in flight and every one is timed; with more, up to D are (pipelining) and the rate is what counts.
 * With --size every message of the stream has that many bytes, and every answer is checked.
 */
#include "common.h"

#define LINE_BYTES 32 /* more than a decimal 64-bit number and its newline */

int main(int argc, char **argv)
{
    int port = (int)number_option(argc, argv, "--port", 0);
    int64_t messages = number_option(argc, argv, "--messages", 0);
    if (!port || !messages) usage("lookups --port P --messages M [--lookups N] [--depth D] [--size BYTES] [--server-pid PID]");
    int64_t lookups = number_option(argc, argv, "--lookups", 10000), depth = number_option(argc, argv, "--depth", 1);
    int64_t size = number_option(argc, argv, "--size", 0);
    pid_t server = (pid_t)number_option(argc, argv, "--server-pid", 0);
    int fd = connect_to(port);
    int64_t *numbers = malloc(sizeof *numbers * (size_t)lookups); /* chosen beforehand: not part of what is timed */
    srand48(20);
    for (int64_t i = 0; i < lookups; i++) numbers[i] = (int64_t)(drand48() * (double)messages);

    struct samples latencies = {0};
    char *request = malloc((size_t)depth * LINE_BYTES), answers[1 << 16], line[LINE_BYTES];
    size_t line_bytes = 0;
    double server_cpu = cpu_seconds(server);
    int64_t begin = now_ns(), sent_at = begin, asked = 0, answered = 0;
    while (answered < lookups) {
        /* Refill when half of the depth is free: a request is a few bytes and would not be worth a send of its own. */
        if (asked < lookups && asked - answered <= depth / 2) {
            int length = 0;
            sent_at = now_ns();
            for (; asked < lookups && asked - answered < depth; asked++)
                length += snprintf(request + length, LINE_BYTES, "%ld\n", (long)numbers[asked]);
            send_whole(fd, request, (size_t)length);
        }
        ssize_t n = recv(fd, answers, sizeof answers, 0);
        if (n <= 0) fail("closed by the server");
        for (ssize_t i = 0; i < n; i++) {
            if (answers[i] != '\n') {
                if (line_bytes < sizeof line - 1) line[line_bytes++] = answers[i];
                continue;
            }
            line[line_bytes] = 0;
            line_bytes = 0;
            if (!isdigit((unsigned char)line[0]) || (size && strtol(line, NULL, 10) != numbers[answered] * size)) {
                fprintf(stderr, "message %ld: the server says: %s\n", (long)numbers[answered], line);
                return 1;
            }
            if (depth == 1) add_sample(&latencies, now_ns() - sent_at);
            answered++;
        }
    }
    double seconds = (now_ns() - begin) / 1e9;
    printf("{\"lookups\": %ld, \"depth\": %ld, ", (long)lookups, (long)depth);
    print_latencies(&latencies);
    printf("\"seconds\": %.4f, \"lookups_per_s\": %.0f, \"server_cpu\": %.4f}\n", seconds, lookups / seconds,
           cpu_seconds(server) - server_cpu);
    return 0;
}
