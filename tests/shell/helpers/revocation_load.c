/* Revocation under load: readers on several tables, the right of one user taken again and again.
 *
 *   revocation_load ROUNDS CTL WHO UID OTHER-UID READERS ITEM...
 *
 * A victim (UID) and READERS others (OTHER-UID) read the ITEMs by read(2), by mappings and by opening them anew, without
 * pause. ROUNDS times WHO is added to the key's users by a line to CTL, the victim opens and maps everything, and at a
 * random instant WHO is taken out again. From the moment that the write returns, whatever the victim begins must fail;
 * what succeeds is counted. The others may have to open an item again, and must never be denied.
 *
 * Prints one line: rounds, what the victim began after a revocation and how much of it succeeded, what the others did,
 * and the time from the write to its return.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ITEMS 64
#define PAGE 4096

enum how { READS, FAULTS, OPENS, HOWS };

struct shared {
	atomic_int phase;       /* counts up; see below */
	atomic_int ready;       /* the phase that the victim has reached */
	atomic_int stop;
	atomic_long begun[HOWS], leaked[HOWS];
	atomic_long others_reads, others_reopened, others_denied, others_wrong;
};

/* Phases of round n: 4n open everything, 4n+1 hammer, 4n+2 the right is gone, 4n+3 close everything. */
static struct shared *shared;
static char **items;
static int item_count;

static _Thread_local sigjmp_buf fault;
static void on_fault(int number)
{
	(void)number;
	siglongjmp(fault, 1);
}

static void die(const char *what)
{
	int error = errno;
	atomic_store(&shared->stop, 1);
	fprintf(stderr, "revocation_load: %s: %s\n", what, strerror(error));
	_exit(1);
}

static void become(int uid)
{
	if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		die("setresuid");
}

/* 1: a byte came, 0: SIGBUS. */
static int touch(volatile char *at)
{
	if (sigsetjmp(fault, 1))
		return 0;
	(void)*at;
	return 1;
}

static char *map(int fd)
{
	char *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	/* A table without a cache has no shared mappings. */
	if (at == MAP_FAILED && errno == ENODEV)
		at = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

static atomic_int busy[HOWS];
static int victim_fd[ITEMS];
static char *victim_map[ITEMS];

static void *hammer(void *argument)
{
	enum how how = (enum how)(long)argument;
	unsigned at = (unsigned)(long)argument;
	char byte;
	while (!atomic_load(&shared->stop)) {
		/* Before the phase is read: who closes waits for it. */
		atomic_store(&busy[how], 1);
		int phase = atomic_load(&shared->phase);
		if (phase % 4 != 1 && phase % 4 != 2) {
			atomic_store(&busy[how], 0);
			usleep(200);
			continue;
		}
		int i = (int)(at++ % (unsigned)item_count), got = 0, fd;
		switch (how) {
		case READS:
			got = pread(victim_fd[i], &byte, 1, 0) == 1;
			break;
		case FAULTS:
			got = victim_map[i] ? touch(victim_map[i]) : 0;
			break;
		default:
			fd = open(items[i], O_RDONLY | O_CLOEXEC);
			got = fd >= 0;
			if (fd >= 0)
				close(fd);
		}
		/* The right was gone before this was begun, and no round has ended since. */
		if (phase % 4 == 2 && atomic_load(&shared->phase) == phase) {
			atomic_fetch_add(&shared->begun[how], 1);
			if (got)
				atomic_fetch_add(&shared->leaked[how], 1);
		}
		atomic_store(&busy[how], 0);
	}
	return NULL;
}

static void victim(int uid)
{
	pthread_t threads[HOWS];
	become(uid);
	for (long how = 0; how < HOWS; how++)
		if (pthread_create(&threads[how], NULL, hammer, (void *)how))
			die("pthread_create");
	for (int seen = -1; !atomic_load(&shared->stop); usleep(100)) {
		int phase = atomic_load(&shared->phase);
		if (phase == seen)
			continue;
		seen = phase;
		for (int i = 0; phase % 4 == 0 && i < item_count; i++) {
			char byte;
			victim_fd[i] = open(items[i], O_RDONLY | O_CLOEXEC);
			if (victim_fd[i] < 0 || pread(victim_fd[i], &byte, 1, 0) != 1)
				die("the victim, while he has the right");
			victim_map[i] = map(victim_fd[i]);
			if (!victim_map[i] || !touch(victim_map[i]))
				die("the victim's mapping, while he has the right");
		}
		if (phase % 4 == 3) {
			for (int how = 0; how < HOWS; how++)
				while (atomic_load(&busy[how]))
					usleep(50);
			for (int i = 0; i < item_count; i++) {
				munmap(victim_map[i], PAGE);
				close(victim_fd[i]);
			}
		}
		atomic_store(&shared->ready, phase);
	}
	_exit(0);
}

static void other(int uid, unsigned at)
{
	int fds[ITEMS];
	char *maps[ITEMS] = { 0 };
	become(uid);
	for (int i = 0; i < item_count; i++)
		fds[i] = -1;
	while (!atomic_load(&shared->stop)) {
		int i = (int)(at++ % (unsigned)item_count);
		char byte = 0;
		if (fds[i] < 0) {
			fds[i] = open(items[i], O_RDONLY | O_CLOEXEC);
			if (fds[i] < 0) {
				/* The name may lead to the inode that is being retired, for a moment. */
				atomic_fetch_add(errno == ESTALE ? &shared->others_reopened : &shared->others_denied, 1);
				continue;
			}
			maps[i] = map(fds[i]);
		}
		ssize_t n = pread(fds[i], &byte, 1, 0);
		if (n == 1 && byte != 'x')
			atomic_fetch_add(&shared->others_wrong, 1);
		if (n < 0 && errno != ESTALE)
			atomic_fetch_add(&shared->others_denied, 1);
		if (n == 1 && maps[i] && touch(maps[i])) {
			atomic_fetch_add(&shared->others_reads, 1);
			continue;
		}
		atomic_fetch_add(&shared->others_reopened, 1);
		if (maps[i])
			munmap(maps[i], PAGE);
		close(fds[i]);
		fds[i] = -1;
	}
	_exit(0);
}

static void order(const char *ctl, const char *verb, const char *who)
{
	char line[256];
	int fd = open(ctl, O_WRONLY), length = snprintf(line, sizeof line, "%s %s\n", verb, who);
	if (fd < 0 || write(fd, line, (size_t)length) != length)
		die(verb);
	close(fd);
}

static void enter(int phase)
{
	atomic_store(&shared->phase, phase);
	for (int waited = 0; atomic_load(&shared->ready) != phase; waited++) {
		if (atomic_load(&shared->stop) || waited > 300000) {
			errno = ETIMEDOUT;
			die("waiting for the victim");
		}
		usleep(100);
	}
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc < 8)
		return 2;
	int rounds = atoi(argv[1]), readers = atoi(argv[6]);
	const char *ctl = argv[2], *who = argv[3];
	items = argv + 7;
	item_count = argc - 7;
	if (item_count > ITEMS || rounds < 1)
		return 2;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	atomic_store(&shared->phase, -1);
	atomic_store(&shared->ready, -1);
	struct sigaction action = { .sa_handler = on_fault };
	sigaction(SIGBUS, &action, NULL);
	pid_t victim_pid = fork();
	if (!victim_pid)
		victim(atoi(argv[4]));
	for (int i = 0; i < readers; i++)
		if (!fork())
			other(atoi(argv[5]), (unsigned)i * 7);
	double *times = calloc((size_t)rounds, sizeof *times);
	srandom((unsigned)getpid());
	for (int round = 1; round <= rounds && !atomic_load(&shared->stop); round++) {
		struct timespec before, after;
		order(ctl, "add-user", who);
		enter(4 * round);
		enter(4 * round + 1);
		usleep((useconds_t)(random() % 15000));
		clock_gettime(CLOCK_MONOTONIC, &before);
		order(ctl, "remove-user", who);
		clock_gettime(CLOCK_MONOTONIC, &after);
		enter(4 * round + 2);
		times[round - 1] = (after.tv_sec - before.tv_sec) * 1e3 + (after.tv_nsec - before.tv_nsec) / 1e6;
		usleep(10000);
		enter(4 * round + 3);
	}
	atomic_store(&shared->stop, 1);
	while (wait(NULL) > 0)
		;
	qsort(times, (size_t)rounds, sizeof *times, by_size);
	printf("{\"rounds\": %d, ", rounds);
	for (int how = 0; how < HOWS; how++) {
		const char *names[] = { "read", "fault", "open" };
		printf("\"%s\": {\"begun\": %ld, \"succeeded\": %ld}, ", names[how], atomic_load(&shared->begun[how]),
		       atomic_load(&shared->leaked[how]));
	}
	printf("\"others\": {\"reads\": %ld, \"reopened\": %ld, \"denied\": %ld, \"wrong\": %ld}, ",
	       atomic_load(&shared->others_reads), atomic_load(&shared->others_reopened),
	       atomic_load(&shared->others_denied), atomic_load(&shared->others_wrong));
	printf("\"save_ms\": {\"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}}\n", times[rounds / 2],
	       times[rounds * 99 / 100], times[rounds - 1]);
	return 0;
}
