/* System calls in the order in which an attacker would make them, on one descriptor.
 *
 *   hostile STEP...
 *
 * Each step prints one line: what it got, or the error's name. From `wait` on, each step waits for a line of standard
 * input; the line `pid` is answered and is no step. What comes before a `wait` is said on standard error.
 *
 *   open:FLAGS:PATH   path:PATH   create:MODE:PATH   dir:PATH   reopen:FLAGS      FLAGS of r, w, +, t (O_TRUNC)
 *   read   write:TEXT   append:TEXT   truncate:SIZE   chmod:MODE   allocate:MODE:OFFSET:SIZE   hole:OFFSET   sync
 *   map   touch   mode   stat   unlink:PATH   rename:FROM:TO   close   names   rewind   wait
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int fd = -1;
static DIR *stream;
static char *mapping;
static sigjmp_buf fault;

static void on_fault(int number)
{
	siglongjmp(fault, number);
}

static void say(long result, const char *word)
{
	puts(result < 0 ? strerrorname_np(errno) : word);
}

static int flags_of(const char *flags)
{
	int mode = strchr(flags, '+') ? O_RDWR : strchr(flags, 'w') ? O_WRONLY : O_RDONLY;
	return mode | (strchr(flags, 't') ? O_TRUNC : 0);
}

static void first_line(void)
{
	char buffer[4096];
	ssize_t n = pread(fd, buffer, sizeof buffer - 1, 0);
	if (n < 0) {
		say(n, "");
		return;
	}
	buffer[n] = 0;
	buffer[strcspn(buffer, "\n")] = 0;
	puts(buffer);
}

static void touch(void)
{
	if (!mapping) {
		puts("nothing is mapped");
	} else if (sigsetjmp(fault, 1)) {
		puts("SIGBUS");
	} else {
		char first[64];
		size_t i;
		for (i = 0; i < sizeof first - 1 && mapping[i] && mapping[i] != '\n'; i++)
			first[i] = mapping[i];
		first[i] = 0;
		puts(first);
	}
}

static void map(void)
{
	mapping = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED) {
		mapping = NULL;
		say(-1, "");
	} else {
		touch();
	}
}

static void names(void)
{
	struct dirent *entry;
	long count = 0;
	if (!stream) {
		puts("no directory");
		return;
	}
	while ((entry = readdir(stream)))
		count++;
	printf("%ld\n", count);
}

static void step(char *text)
{
	char *a = strchr(text, ':'), *b = NULL, *c = NULL;
	struct stat st;
	if (a)
		*a++ = 0;
	if (a && (b = strchr(a, ':')))
		*b++ = 0;
	if (b && (c = strchr(b, ':')))
		*c++ = 0;
	if (!strcmp(text, "open")) {
		say(fd = open(b, flags_of(a)), "opened");
	} else if (!strcmp(text, "path")) {
		say(fd = open(a, O_PATH), "opened");
	} else if (!strcmp(text, "create")) {
		say(fd = open(b, O_RDWR | O_CREAT | O_EXCL, (mode_t)strtol(a, NULL, 8)), "created");
	} else if (!strcmp(text, "dir")) {
		stream = opendir(a);
		say(stream ? 0 : -1, "opened");
	} else if (!strcmp(text, "reopen")) {
		char link[64];
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		int again = open(link, flags_of(a));
		say(again, "opened");
		if (again >= 0)
			fd = again;
	} else if (!strcmp(text, "read")) {
		first_line();
	} else if (!strcmp(text, "write")) {
		say(pwrite(fd, a, strlen(a), 0), "written");
	} else if (!strcmp(text, "append")) {
		say(write(fd, a, strlen(a)), "written");
	} else if (!strcmp(text, "truncate")) {
		say(ftruncate(fd, atoll(a)), "cut");
	} else if (!strcmp(text, "chmod")) {
		say(fchmod(fd, (mode_t)strtol(a, NULL, 8)), "changed");
	} else if (!strcmp(text, "allocate")) {
		say(fallocate(fd, atoi(a), atoll(b), atoll(c)), "allocated");
	} else if (!strcmp(text, "hole")) {
		off_t at = lseek(fd, atoll(a), SEEK_HOLE);
		if (at < 0)
			say(at, "");
		else
			printf("%lld\n", (long long)at);
	} else if (!strcmp(text, "sync")) {
		say(fsync(fd), "synced");
	} else if (!strcmp(text, "map")) {
		map();
	} else if (!strcmp(text, "touch")) {
		touch();
	} else if (!strcmp(text, "mode")) {
		if (fstat(fd, &st))
			say(-1, "");
		else
			printf("%o\n", st.st_mode & 07777);
	} else if (!strcmp(text, "stat")) {
		if (fstat(fd, &st))
			say(-1, "");
		else
			printf("%u:%o:%lld\n", st.st_uid, st.st_mode & 07777, (long long)st.st_size);
	} else if (!strcmp(text, "unlink")) {
		say(unlink(a), "removed");
	} else if (!strcmp(text, "rename")) {
		say(rename(a, b), "renamed");
	} else if (!strcmp(text, "close")) {
		say(close(fd), "closed");
	} else if (!strcmp(text, "names")) {
		names();
	} else if (!strcmp(text, "rewind")) {
		rewinddir(stream);
		puts("rewound");
	} else {
		printf("no step %s\n", text);
	}
}

/* False at the end of standard input. */
static int told_to_go(void)
{
	char line[256];
	while (fgets(line, sizeof line, stdin)) {
		if (strcmp(line, "pid\n"))
			return 1;
		printf("%d\n", getpid());
	}
	return 0;
}

int main(int argc, char **argv)
{
	int waits = 0, standard_output = dup(1);
	signal(SIGBUS, on_fault);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "wait"))
			dup2(2, 1);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "wait")) {
			waits = 1;
			dup2(standard_output, 1);
		} else if (!waits || told_to_go()) {
			step(argv[i]);
		} else {
			return 0;
		}
	}
	while (waits && told_to_go())
		puts("no more steps");
	return 0;
}
