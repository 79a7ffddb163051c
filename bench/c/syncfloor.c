/* syncfloor --file FILE [--size BYTES] [--count N]: what the disk charges for a promise.
 *
 * Appends one message and makes it durable (write, fdatasync), N times: no acknowledgement of a synced message
 * can come sooner.
 */
#include "common.h"

int main(int argc, char **argv)
{
    const char *path = text_option(argc, argv, "--file", NULL);
    if (!path) usage("syncfloor --file FILE [--size BYTES] [--count N]");
    long size = number_option(argc, argv, "--size", 100), count = number_option(argc, argv, "--count", 1000);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (file < 0) fail(path);
    char *message = malloc((size_t)size);
    memset(message, 'x', (size_t)size);
    message[size - 1] = '\n';
    struct samples latencies = {0};
    int64_t begin = now_ns();
    for (long i = 0; i < count; i++) {
        int64_t before = now_ns();
        if (write(file, message, (size_t)size) != size || fdatasync(file)) fail(path);
        add_sample(&latencies, now_ns() - before);
    }
    printf("{\"size\": %ld, \"count\": %ld, ", size, count);
    print_latencies(&latencies);
    printf("\"seconds\": %.4f}\n", (now_ns() - begin) / 1e9);
    return 0;
}
