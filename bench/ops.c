// The file operations that bench/run.sh times.
//
//   ops create|createsync|read|readevicted|stat|replace|unlink DIR COUNT THREADS
//       does it to the items 0 to COUNT-1 in DIR and prints: operations a second, median and 99th percentile of the
//       microseconds of one. An item is 1 KiB.
//   ops write|scan FILE MIB
//       writes a file from its start and flushes it, or reads it; prints MB/s (10^6 bytes).
//   ops mixed DIR COUNT PROCESSES
//       processes at once in folders of their own, each COUNT operations: of twenty, nine reads, five creations, three
//       replacements, two removals, one file of 1 MiB written and read; prints operations a second of all together.
//   ops beside DIR COUNT FILE MIB
//       reads the items 0 to COUNT-1 in DIR in turn while another process writes FILE, flushes it, and reads it; prints
//       median and 99th percentile of the microseconds of one, and how many there were.
//   ops tree DIR COUNT
//       makes COUNT files of the sizes of source code in folders, the same each time.
//   ops time COMMAND [ARGUMENT]...
//       runs a command without its output and prints how many seconds it took.
//
// What is written looks random, so that nothing can be stored as a hole or packed, and follows from its place, so that
// what is read is checked: a file system that gives back something else is not measured.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ITEM = 1024, CHUNK = 1 << 20, PAGE = 4096, MOST_THREADS = 64, PATH = 4096 };

static void die(const char *what) {
    fprintf(stderr, "ops: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

// --- what files hold ---------------------------------------------------------------------------------------------

// The finalizer of splitmix64.
static uint64_t mixed(uint64_t word) {
    word += 0x9e3779b97f4a7c15;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9;
    word = (word ^ word >> 27) * 0x94d049bb133111eb;
    return word ^ word >> 31;
}

// What file `number` holds from `offset` on, which is a multiple of 8, as is `length`.
static void fill(char *bytes, size_t length, uint64_t number, uint64_t offset) {
    for (size_t at = 0; at < length; at += 8) {
        uint64_t word = mixed(number << 40 ^ (offset + at));
        memcpy(bytes + at, &word, 8);
    }
}

static void put_all(int fd, const char *bytes, size_t length, const char *path) {
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written <= 0) die(path);
        bytes += written;
        length -= (size_t)written;
    }
}

// --- small items -------------------------------------------------------------------------------------------------

static const char *directory;
static int count, threads;
static float *microseconds; // of each operation
static pthread_barrier_t ready;

static void put(const char *path, const char *bytes, int flush) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) die(path);
    put_all(fd, bytes, ITEM, path);
    if (flush && fsync(fd)) die(path);
    if (close(fd)) die(path);
}

// Each operation gets what the item holds, or will, times what a program would wait for, and nothing around it.

static double create(const char *path, const char *bytes) {
    double start = seconds();
    put(path, bytes, 0);
    return seconds() - start;
}

static double createsync(const char *path, const char *bytes) {
    double start = seconds();
    put(path, bytes, 1);
    return seconds() - start;
}

static double read_item(const char *path, const char *bytes) {
    char found[ITEM];
    double start = seconds();
    int fd = open(path, O_RDONLY);
    if (fd < 0) die(path);
    if (read(fd, found, ITEM) != ITEM) die(path);
    close(fd);
    double taken = seconds() - start;
    if (memcmp(found, bytes, ITEM)) {
        errno = EILSEQ;
        die(path);
    }
    return taken;
}

// Gone from this mount's page cache; whatever lies below keeps its own copy.
static double readevicted(const char *path, const char *bytes) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) die(path);
    if ((errno = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))) die(path);
    close(fd);
    return read_item(path, bytes);
}

static double stat_item(const char *path, const char *bytes) {
    (void)bytes;
    struct stat found;
    double start = seconds();
    if (stat(path, &found)) die(path);
    double taken = seconds() - start;
    if (found.st_size != ITEM) die("a size is wrong");
    return taken;
}

// As programs that save safely do, without the flush.
static double replace(const char *path, const char *bytes) {
    char temporary[PATH + 8];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    double start = seconds();
    put(temporary, bytes, 0);
    if (rename(temporary, path)) die(path);
    return seconds() - start;
}

static double unlink_item(const char *path, const char *bytes) {
    (void)bytes;
    double start = seconds();
    if (unlink(path)) die(path);
    return seconds() - start;
}

static const struct {
    const char *name;
    double (*act)(const char *path, const char *bytes);
} operations[] = {
    {"create", create},   {"createsync", createsync}, {"read", read_item},     {"readevicted", readevicted},
    {"stat", stat_item},  {"replace", replace},       {"unlink", unlink_item},
};

static double (*act)(const char *path, const char *bytes);

static void *work(void *argument) {
    char path[PATH], bytes[ITEM];
    int first = (int)(intptr_t)argument;
    pthread_barrier_wait(&ready);
    for (int number = first; number < count; number += threads) {
        snprintf(path, sizeof path, "%s/item-%06d", directory, number);
        fill(bytes, ITEM, (uint64_t)number, 0);
        microseconds[number] = (float)(act(path, bytes) * 1e6);
    }
    return NULL;
}

static int by_size(const void *one, const void *other) {
    float a = *(const float *)one, b = *(const float *)other;
    return (a > b) - (a < b);
}

static void items(void) {
    pthread_t ids[MOST_THREADS];
    microseconds = calloc((size_t)count, sizeof *microseconds);
    if (!microseconds) die("memory");
    pthread_barrier_init(&ready, NULL, (unsigned)threads + 1);
    for (int number = 0; number < threads; number++) {
        if ((errno = pthread_create(&ids[number], NULL, work, (void *)(intptr_t)number))) die("thread");
    }
    double start = seconds();
    pthread_barrier_wait(&ready);
    for (int number = 0; number < threads; number++) pthread_join(ids[number], NULL);
    double taken = seconds() - start;
    qsort(microseconds, (size_t)count, sizeof *microseconds, by_size);
    printf("%.0f %.2f %.2f\n", count / taken, (double)microseconds[count / 2], (double)microseconds[count * 99L / 100]);
}

// --- a large file ------------------------------------------------------------------------------------------------

static void stream(const char *path, long mib, int writing) {
    // What is written is made before the clock runs; of what is read, a word a page is checked.
    char *bytes = malloc(writing ? (size_t)mib * CHUNK : CHUNK);
    if (!bytes) die("memory");
    if (writing) fill(bytes, (size_t)mib * CHUNK, 0, 0);
    double start = seconds();
    int fd = writing ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644) : open(path, O_RDONLY);
    if (fd < 0) die(path);
    for (uint64_t chunk = 0; chunk < (uint64_t)mib; chunk++) {
        if (writing) {
            put_all(fd, bytes + chunk * CHUNK, CHUNK, path);
            continue;
        }
        for (size_t have = 0; have < CHUNK;) {
            ssize_t part = read(fd, bytes + have, CHUNK - have);
            if (part <= 0) die(path);
            have += (size_t)part;
        }
        for (size_t at = 0; at < CHUNK; at += PAGE) {
            uint64_t word = mixed(chunk * CHUNK + at);
            if (memcmp(bytes + at, &word, 8)) {
                errno = EILSEQ;
                die(path);
            }
        }
    }
    if (writing && fsync(fd)) die(path);
    if (close(fd)) die(path);
    printf("%.1f\n", (double)mib * CHUNK / 1e6 / (seconds() - start));
}

// --- several processes at once ------------------------------------------------------------------------------------

static void child_ended(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) < 0) die("wait");
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fputs("ops: a process failed\n", stderr);
        exit(1);
    }
}

// What one process does: the items `removed` to `made`-1 are there.
static void mixture(const char *root, int process) {
    char path[PATH], small[ITEM], *large = malloc(CHUNK);
    if (!large) die("memory");
    uint64_t made = 0, removed = 0;
    for (int number = 0; number < count; number++) {
        uint64_t chance = mixed((uint64_t)process << 32 | (uint64_t)number);
        int sort = (int)(chance % 20);
        // Few items at first: then all but removals make more.
        if (made - removed < 16 && sort < 19) sort = 9;
        uint64_t there = made > removed ? made - removed : 1, which = removed + (chance >> 8) % there;
        if (sort >= 9 && sort < 14) which = made++;
        if (sort >= 17 && sort < 19) which = removed++;
        snprintf(path, sizeof path, "%s/%d/item-%06d", root, process, (int)which);
        fill(small, ITEM, which, 0);
        if (sort < 9) {
            read_item(path, small);
        } else if (sort < 14) {
            create(path, small);
        } else if (sort < 17) {
            replace(path, small);
        } else if (sort < 19) {
            unlink_item(path, small);
        } else {
            snprintf(path, sizeof path, "%s/%d/large", root, process);
            fill(large, CHUNK, chance, 0);
            int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
            if (fd < 0) die(path);
            put_all(fd, large, CHUNK, path);
            uint64_t last;
            if (pread(fd, &last, 8, CHUNK - 8) != 8 || memcmp(&last, large + CHUNK - 8, 8)) die(path);
            if (close(fd)) die(path);
        }
    }
    free(large);
}

static void processes(const char *root) {
    char path[PATH];
    for (int process = 0; process < threads; process++) {
        snprintf(path, sizeof path, "%s/%d", root, process);
        if (mkdir(path, 0755)) die(path);
    }
    double start = seconds();
    pid_t children[MOST_THREADS];
    for (int process = 0; process < threads; process++) {
        children[process] = fork();
        if (children[process] < 0) die("fork");
        if (children[process] == 0) {
            mixture(root, process);
            _exit(0);
        }
    }
    for (int process = 0; process < threads; process++) child_ended(children[process]);
    printf("%.0f\n", (double)count * threads / (seconds() - start));
}

static void beside(const char *root, const char *file, long mib) {
    enum { MOST = 1 << 20 };
    char path[PATH], bytes[ITEM];
    microseconds = calloc(MOST, sizeof *microseconds);
    if (!microseconds) die("memory");
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        if (!freopen("/dev/null", "w", stdout)) die("/dev/null");
        stream(file, mib, 1);
        stream(file, mib, 0);
        exit(0);
    }
    long done = 0;
    siginfo_t ended = {0};
    while (done < MOST) {
        if (waitid(P_PID, (id_t)child, &ended, WEXITED | WNOHANG | WNOWAIT)) die("wait");
        if (ended.si_pid) break;
        int number = (int)(done % count);
        snprintf(path, sizeof path, "%s/item-%06d", root, number);
        fill(bytes, ITEM, (uint64_t)number, 0);
        microseconds[done++] = (float)(read_item(path, bytes) * 1e6);
    }
    child_ended(child);
    if (!done) die("nothing was read beside the stream");
    qsort(microseconds, (size_t)done, sizeof *microseconds, by_size);
    printf("%.2f %.2f %ld\n", (double)microseconds[done / 2], (double)microseconds[done * 99 / 100], done);
}

// --- a tree of source code ---------------------------------------------------------------------------------------

static void folder(const char *path) {
    if (mkdir(path, 0755) && errno != EEXIST) die(path);
}

// A dozen files a folder, ten folders a parent; sizes from 128 bytes to 32 KiB, their logarithm even.
static void tree(const char *root) {
    char path[PATH];
    static char bytes[40 << 10];
    for (int number = 0; number < count; number++) {
        int group = number / 12;
        snprintf(path, sizeof path, "%s/part-%02d", root, group / 10);
        folder(path);
        snprintf(path, sizeof path, "%s/part-%02d/module-%02d", root, group / 10, group % 10);
        folder(path);
        size_t length = strlen(path);
        snprintf(path + length, sizeof path - length, "/source-%02d.c", number % 12);
        uint64_t chance = mixed((uint64_t)number);
        size_t base = (size_t)128 << chance % 8;
        size_t size = base + (size_t)(chance >> 8) % base;
        fill(bytes, sizeof bytes, (uint64_t)number, 0);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0) die(path);
        put_all(fd, bytes, size, path);
        if (close(fd)) die(path);
    }
}

// --- a command ---------------------------------------------------------------------------------------------------

static void time_command(char **command) {
    double start = seconds();
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        if (null < 0 || dup2(null, 1) < 0) die("/dev/null");
        execvp(command[0], command);
        die(command[0]);
    }
    child_ended(child);
    printf("%.4f\n", seconds() - start);
}

static int usage(void) {
    fputs("usage: ops OPERATION DIR COUNT THREADS | mixed DIR COUNT PROCESSES | beside DIR COUNT FILE MIB\n"
          "           | write|scan FILE MIB | tree DIR COUNT | time COMMAND...\n", stderr);
    return 2;
}

int main(int argc, char **argv) {
    if (argc >= 3 && !strcmp(argv[1], "time")) {
        time_command(argv + 2);
        return 0;
    }
    if (argc < 4) return usage();
    count = atoi(argv[3]);
    if (count < 1) return usage();
    if (!strcmp(argv[1], "write") || !strcmp(argv[1], "scan")) {
        stream(argv[2], count, argv[1][0] == 'w');
        return 0;
    }
    if (!strcmp(argv[1], "tree")) {
        tree(argv[2]);
        return 0;
    }
    if (!strcmp(argv[1], "beside")) {
        if (argc < 6 || atol(argv[5]) < 1) return usage();
        beside(argv[2], argv[4], atol(argv[5]));
        return 0;
    }
    if (!strcmp(argv[1], "mixed")) {
        threads = argc > 4 ? atoi(argv[4]) : 8;
        if (threads < 1 || threads > MOST_THREADS) return usage();
        processes(argv[2]);
        return 0;
    }
    for (size_t which = 0; which < sizeof operations / sizeof *operations; which++) {
        if (!strcmp(argv[1], operations[which].name)) act = operations[which].act;
    }
    threads = argc > 4 ? atoi(argv[4]) : 1;
    directory = argv[2];
    if (!act || threads < 1 || threads > MOST_THREADS) return usage();
    items();
    return 0;
}
