/* What posix_more.bats tests by system calls: one scenario a word, each in a folder that is empty or holds what the suite
 * has put there. Says nothing and ends with 0 if all is as it must be, else which line was not.
 *
 *   posix WORD DIR       one of the scenarios below
 *   posix quota DEVICE UID KIB   a limit for the files of a user on an ext4 with quotas
 *   posix cut PATH       open(2) with O_RDONLY | O_TRUNC; prints the error's name
 *   posix overwrite PATH OFFSET LENGTH BYTE   in writes of 64 KiB; prints how much was written and the error, if any
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/quota.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(holds)                                                                                                   \
	do {                                                                                                           \
		if (!(holds)) {                                                                                        \
			printf("line %d: %s (%s)\n", __LINE__, #holds, strerrorname_np(errno));                        \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)
#define FAILS(call, number)                                                                                            \
	do {                                                                                                           \
		errno = 0;                                                                                             \
		if ((call) != -1 || errno != (number)) {                                                               \
			printf("line %d: %s: %s, not %s\n", __LINE__, #call, strerrorname_np(errno), #number);         \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

enum { BLOCK = 4096, MIB = 1 << 20 };

static char *filled(size_t length, int byte)
{
	char *bytes = malloc(length);
	CHECK(bytes);
	return memset(bytes, byte, length);
}

/* Whether a range of a file is all one byte. */
static int is_all(int fd, off_t from, off_t to, int byte)
{
	char buffer[65536];
	while (from < to) {
		size_t part = to - from < (off_t)sizeof buffer ? (size_t)(to - from) : sizeof buffer;
		ssize_t n = pread(fd, buffer, part, from);
		if (n <= 0)
			return 0;
		for (ssize_t i = 0; i < n; i++)
			if (buffer[i] != (char)byte)
				return 0;
		from += n;
	}
	return 1;
}

static struct stat stat_of(int fd)
{
	struct stat st;
	CHECK(!fstat(fd, &st));
	return st;
}

static int make(const char *name, size_t length, int byte)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *bytes = filled(length + 1, byte);
	CHECK(fd >= 0 && pwrite(fd, bytes, length, 0) == (ssize_t)length);
	free(bytes);
	return fd;
}

/* Waits for a child, which must have ended well. */
static void joined(pid_t child)
{
	int status;
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* --- space ------------------------------------------------------------------------------------------------------- */

static void fallocate_on(size_t length)
{
	off_t size = (off_t)length, third = size / 3;
	int fd = make("f", length, 'x');
	CHECK(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, size + 3 * BLOCK));
	CHECK(stat_of(fd).st_size == size && is_all(fd, 0, size, 'x'));
	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, third, third));
	CHECK(is_all(fd, 0, third, 'x') && is_all(fd, third, 2 * third, 0) && is_all(fd, 2 * third, size, 'x'));
	CHECK(stat_of(fd).st_size == size);
	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, size - 1, 10 * BLOCK));
	CHECK(stat_of(fd).st_size == size && is_all(fd, 2 * third, size - 1, 'x') && is_all(fd, size - 1, size, 0));
	CHECK(!fallocate(fd, FALLOC_FL_ZERO_RANGE, 1, third / 2));
	CHECK(is_all(fd, 0, 1, 'x') && is_all(fd, 1, 1 + third / 2, 0) && is_all(fd, 1 + third / 2, third, 'x'));
	CHECK(!fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, size - 2, 100));
	CHECK(stat_of(fd).st_size == size && is_all(fd, size - 2, size, 0));
	CHECK(!fallocate(fd, FALLOC_FL_ZERO_RANGE, size - 3, 100));
	CHECK(stat_of(fd).st_size == size + 97 && is_all(fd, size - 3, size + 97, 0));
	CHECK(!fallocate(fd, 0, size, 2 * BLOCK));
	CHECK(stat_of(fd).st_size == size + 2 * BLOCK && is_all(fd, size - 3, size + 2 * BLOCK, 0));
	CHECK(is_all(fd, 2 * third, size - 3, 'x'));
	CHECK(!fallocate(fd, 0, 0, 1) && stat_of(fd).st_size == size + 2 * BLOCK);
	CHECK(!close(fd));
}

static void space(void)
{
	fallocate_on(100);
	fallocate_on(3000);
	fallocate_on(10000);
	fallocate_on(2 * MIB + 5);
	int fd = open("f", O_RDWR), reader = open("f", O_RDONLY);
	off_t size = stat_of(fd).st_size;
	FAILS(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, BLOCK), EOPNOTSUPP);
	FAILS(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, BLOCK), EOPNOTSUPP);
	FAILS(fallocate(fd, FALLOC_FL_INSERT_RANGE, 0, BLOCK), EOPNOTSUPP);
	FAILS(fallocate(fd, FALLOC_FL_UNSHARE_RANGE, 0, BLOCK), EOPNOTSUPP);
	FAILS(fallocate(fd, 0, -1, BLOCK), EINVAL);
	FAILS(fallocate(fd, 0, 0, 0), EINVAL);
	FAILS(fallocate(fd, 0, 1L << 62, BLOCK), EFBIG);
	FAILS(fallocate(reader, 0, 0, BLOCK), EBADF);
	CHECK(stat_of(fd).st_size == size);
	/* Reserved space is there, and a hole gives it back. */
	CHECK(!ftruncate(fd, 0) && !fallocate(fd, 0, 0, 8 * MIB));
	CHECK(stat_of(fd).st_blocks >= 8 * MIB / 512 && is_all(fd, 0, 8 * MIB, 0));
	CHECK(!fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 8 * MIB) && stat_of(fd).st_blocks >= 8 * MIB / 512);
	char *bytes = filled(8 * MIB, 'y');
	CHECK(pwrite(fd, bytes, 8 * MIB, 0) == 8 * MIB);
	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * MIB) && !fsync(fd));
	CHECK(stat_of(fd).st_blocks < MIB / 512 && is_all(fd, 0, 8 * MIB, 0));
	free(bytes);
}

/* Where a shared mapping could hold more than the daemon knows of, all may be data: so the holes are looked for when
 * nobody has the item open for reading and writing. */
static void holes(void)
{
	int fd = make("f", 3 * BLOCK, 'x'), reader = open("f", O_RDONLY);
	char *bytes = filled(BLOCK, 'y');
	CHECK(pwrite(fd, bytes, BLOCK, MIB) == BLOCK && !ftruncate(fd, 4 * MIB));
	CHECK(lseek(fd, 0, SEEK_DATA) == 0 && lseek(fd, 5, SEEK_DATA) == 5);
	/* What is dirty in a mapping is data, for whoever asks. */
	char *at = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED);
	at[3 * MIB] = 'z';
	off_t data = lseek(reader, MIB + BLOCK, SEEK_DATA), hole = lseek(reader, 3 * MIB, SEEK_HOLE);
	CHECK(data >= MIB + BLOCK && data <= 3 * MIB && hole > 3 * MIB);
	CHECK(lseek(fd, MIB + BLOCK, SEEK_DATA) == data);
	CHECK(!munmap(at, 4 * MIB) && !close(fd));
	/* The daemon hears of a close a little later. */
	for (int i = 0; i < 1000 && lseek(reader, 0, SEEK_HOLE) != 3 * BLOCK; i++)
		usleep(10000);
	CHECK(lseek(reader, 0, SEEK_HOLE) == 3 * BLOCK && lseek(reader, 3 * BLOCK + 7, SEEK_HOLE) == 3 * BLOCK + 7);
	CHECK(lseek(reader, 3 * BLOCK, SEEK_DATA) == MIB && lseek(reader, MIB - 1, SEEK_DATA) == MIB);
	CHECK(lseek(reader, MIB, SEEK_HOLE) == MIB + BLOCK && lseek(reader, MIB + BLOCK, SEEK_DATA) == 3 * MIB);
	FAILS(lseek(reader, 3 * MIB + BLOCK, SEEK_DATA), ENXIO);
	FAILS(lseek(reader, 4 * MIB, SEEK_HOLE), ENXIO);
	FAILS(lseek(reader, -1, SEEK_DATA), ENXIO);
	/* A punched range is a hole, and zeros that were written are data. */
	int writer = open("f", O_WRONLY);
	CHECK(!fallocate(writer, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BLOCK, BLOCK));
	CHECK(lseek(reader, 0, SEEK_HOLE) == BLOCK && lseek(reader, BLOCK, SEEK_DATA) == 2 * BLOCK);
	memset(bytes, 0, BLOCK);
	CHECK(pwrite(writer, bytes, BLOCK, 2 * MIB) == BLOCK && lseek(reader, MIB + BLOCK, SEEK_DATA) == 2 * MIB);
	free(bytes);
	/* One that is a few bytes long ends with the hole that every file ends with. */
	CHECK(!close(make("small", 10, 'x')));
	int small = open("small", O_RDONLY);
	CHECK(lseek(small, 0, SEEK_DATA) == 0 && lseek(small, 0, SEEK_HOLE) == 10);
	FAILS(lseek(small, 10, SEEK_DATA), ENXIO);
}

/* --- ways to read and write ------------------------------------------------------------------------------------------ */

static void direct(void)
{
	char *out = aligned_alloc(BLOCK, 3 * MIB), *in = aligned_alloc(BLOCK, 3 * MIB);
	CHECK(out && in);
	for (int i = 0; i < 3 * MIB; i++)
		out[i] = (char)(i * 7 + i / BLOCK);
	int raw = open("f", O_RDWR | O_CREAT | O_DIRECT, 0600), cached = open("f", O_RDWR);
	CHECK(raw >= 0 && cached >= 0);
	CHECK(pwrite(raw, out, 3 * MIB, 0) == 3 * MIB);
	CHECK(pread(cached, in, 3 * MIB, 0) == 3 * MIB && !memcmp(in, out, 3 * MIB));
	/* Each sees at once what the other has written, whatever is cached. */
	memset(out + MIB, 'd', BLOCK);
	CHECK(pwrite(raw, out + MIB, BLOCK, MIB) == BLOCK);
	CHECK(pread(cached, in, BLOCK, MIB) == BLOCK && !memcmp(in, out + MIB, BLOCK));
	memset(out + 2 * MIB, 'c', 100);
	CHECK(pwrite(cached, out + 2 * MIB, 100, 2 * MIB) == 100);
	CHECK(pread(raw, in, 3 * MIB, 0) == 3 * MIB && !memcmp(in, out, 3 * MIB));
	char *at = mmap(NULL, 3 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, cached, 0);
	CHECK(at != MAP_FAILED && !memcmp(at, out, 3 * MIB));
	memset(at + 5 * BLOCK, 'm', BLOCK);
	memset(out + 5 * BLOCK, 'm', BLOCK);
	CHECK(pread(raw, in, 3 * MIB, 0) == 3 * MIB && !memcmp(in, out, 3 * MIB));
	memset(out + 6 * BLOCK, 'r', 2 * BLOCK);
	CHECK(pwrite(raw, out + 6 * BLOCK, 2 * BLOCK, 6 * BLOCK) == 2 * BLOCK);
	CHECK(!memcmp(at, out, 3 * MIB));
	/* Reads end with the file. */
	CHECK(!ftruncate(raw, MIB + 10) && pread(raw, in, 2 * MIB, 0) == MIB + 10 && pread(raw, in, BLOCK, 2 * MIB) == 0);
	free(out);
	free(in);
}

/* Four processes, one of them with O_DIRECT, append records of all lengths: each stands whole, in the order of its writer. */
static void append(void)
{
	enum { WRITERS = 4, RECORDS = 150, LONGEST = 9000 };
	off_t total = 0;
	pid_t children[WRITERS];
	CHECK(close(open("log", O_WRONLY | O_CREAT, 0600)) == 0);
	for (int writer = 0; writer < WRITERS; writer++) {
		children[writer] = fork();
		CHECK(children[writer] >= 0);
		if (children[writer])
			continue;
		int fd = open("log", O_WRONLY | O_APPEND | (writer == 3 ? O_DIRECT : 0));
		CHECK(fd >= 0);
		for (int record = 0; record < RECORDS; record++) {
			int length = 12 + (record * 7919 + writer * 104729) % (LONGEST - 12);
			char *bytes = filled(LONGEST + 1, 'a' + writer);
			char head[40];
			snprintf(head, sizeof head, "%d %4d %4d |", writer, record, length);
			memcpy(bytes, head, 12);
			CHECK(write(fd, bytes, (size_t)length) == length);
			free(bytes);
		}
		exit(0);
	}
	for (int writer = 0; writer < WRITERS; writer++)
		joined(children[writer]);
	int fd = open("log", O_RDONLY), next[WRITERS] = { 0 };
	char bytes[LONGEST + 1];
	while (pread(fd, bytes, 12, total) == 12) {
		int writer, record, length;
		CHECK(sscanf(bytes, "%d %d %d", &writer, &record, &length) == 3 && writer >= 0 && writer < WRITERS);
		CHECK(length == 12 + (record * 7919 + writer * 104729) % (LONGEST - 12));
		CHECK(record == next[writer]++);
		CHECK(is_all(fd, total + 12, total + length, 'a' + writer));
		total += length;
	}
	CHECK(total == stat_of(fd).st_size);
	for (int writer = 0; writer < WRITERS; writer++)
		CHECK(next[writer] == RECORDS);
}

static void vectors(void)
{
	char a[] = "one ", b[] = "two ", c[] = "three", back[64] = "";
	struct iovec parts[] = { { a, 4 }, { b, 4 }, { c, 5 } }, into[] = { { back, 6 }, { back + 6, 50 } };
	int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(writev(fd, parts, 3) == 13 && preadv(fd, into, 2, 0) == 13 && !strcmp(back, "one two three"));
	CHECK(pwritev2(fd, parts, 1, 0, RWF_APPEND) == 4 && stat_of(fd).st_size == 17);
	CHECK(pwritev2(fd, parts, 1, 0, RWF_DSYNC) == 4 && pwritev2(fd, parts, 1, 0, RWF_SYNC) == 4);
	int synced = open("synced", O_RDWR | O_CREAT | O_SYNC, 0600);
	CHECK(write(synced, a, 4) == 4 && !fdatasync(synced) && !syncfs(synced) && !sync_file_range(synced, 0, 4, 7));
	/* Within one file, and from one to another. */
	off_t from = 4, to = 100;
	CHECK(copy_file_range(fd, &from, fd, &to, 8, 0) == 8);
	CHECK(pread(fd, back, 8, 100) == 8 && !memcmp(back, "two thre", 8) && is_all(fd, 17, 100, 0));
	from = 0, to = 2;
	FAILS(copy_file_range(fd, &from, fd, &to, 8, 0), EINVAL);
	from = 0;
	CHECK(lseek(synced, 0, SEEK_SET) == 0 && sendfile(synced, fd, &from, 8) == 8);
	CHECK(pread(synced, back, 8, 0) == 8 && !memcmp(back, "one two ", 8));
	CHECK(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) && readahead(fd, 0, 100) == 0);
	/* Beyond the end there is nothing; at no offset below 0 anything. */
	CHECK(pread(fd, back, 8, 1000) == 0 && pread(fd, back, 8, 104) == 4);
	FAILS(pread(fd, back, 8, -1), EINVAL);
	FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
	FAILS(pwrite(fd, a, 4, LONG_MAX - 1), EINVAL);
	FAILS(pwrite(fd, a, 4, 1L << 62), EFBIG);
}

/* --- names -------------------------------------------------------------------------------------------------------- */

static void unlinked(void)
{
	char back[16], *bytes = filled(100000, 'y');
	int fd = make("f", 5000, 'x');
	CHECK(!unlink("f") && stat_of(fd).st_nlink == 0);
	FAILS(access("f", F_OK), ENOENT);
	int other = make("f", 3, 'n');
	CHECK(is_all(fd, 0, 5000, 'x') && stat_of(fd).st_ino != stat_of(other).st_ino);
	CHECK(pwrite(fd, bytes, 100000, 4000) == 100000 && !fsync(fd) && stat_of(fd).st_size == 104000);
	CHECK(is_all(fd, 0, 4000, 'x') && is_all(fd, 4000, 104000, 'y'));
	CHECK(!ftruncate(fd, 10) && !fchmod(fd, 0640) && (stat_of(fd).st_mode & 0777) == 0640);
	struct timespec times[2] = { { 5, 6 }, { 7, 8 } };
	CHECK(!futimens(fd, times) && stat_of(fd).st_mtim.tv_sec == 7 && stat_of(fd).st_mtim.tv_nsec == 8);
	char *at = mmap(NULL, 10, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED && at[3] == 'x');
	at[3] = 'm';
	CHECK(!msync(at, 10, MS_SYNC) && pread(fd, back, 10, 0) == 10 && back[3] == 'm');
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	FAILS(linkat(AT_FDCWD, path, AT_FDCWD, "again", AT_SYMLINK_FOLLOW), ENOENT);
	/* Another handle, through /proc, is of the same item. */
	int again = open(path, O_RDWR);
	CHECK(again >= 0 && pwrite(again, "A", 1, 0) == 1 && pread(fd, back, 1, 0) == 1 && back[0] == 'A');
	CHECK(is_all(other, 0, 3, 'n') && stat_of(other).st_nlink == 1);
	/* What a rename has replaced lives on as well. */
	make("new", 4, 'w');
	CHECK(!rename("new", "f") && stat_of(other).st_nlink == 0 && is_all(other, 0, 3, 'n'));
	CHECK(pwrite(other, bytes, 10, 0) == 10 && is_all(open("f", O_RDONLY), 0, 4, 'w'));
	/* A folder that is gone is empty, and stays so. */
	CHECK(!mkdir("d", 0700));
	int folder = open("d", O_RDONLY | O_DIRECTORY);
	CHECK(folder >= 0 && !rmdir("d") && stat_of(folder).st_nlink == 0);
	FAILS(openat(folder, "x", O_WRONLY | O_CREAT, 0600), ENOENT);
	FAILS(mkdirat(folder, "x", 0700), ENOENT);
	free(bytes);
}

static int renamed(const char *from, const char *to, unsigned flags)
{
	return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
}

static void renames(void)
{
	int one = make("one", 1, '1'), two = make("two", 1, '2');
	CHECK(!mkdir("d", 0700) && !mkdir("d/e", 0700));
	FAILS(renamed("one", "two", RENAME_NOREPLACE), EEXIST);
	FAILS(renamed("one", "d", RENAME_NOREPLACE), EEXIST);
	FAILS(renamed("none", "new", RENAME_NOREPLACE), ENOENT);
	CHECK(is_all(open("one", O_RDONLY), 0, 1, '1') && is_all(open("two", O_RDONLY), 0, 1, '2'));
	CHECK(!renamed("one", "d/one", RENAME_NOREPLACE) && is_all(open("d/one", O_RDONLY), 0, 1, '1'));
	FAILS(access("one", F_OK), ENOENT);
	CHECK(!renamed("d/one", "two", RENAME_EXCHANGE));
	CHECK(is_all(open("two", O_RDONLY), 0, 1, '1') && is_all(open("d/one", O_RDONLY), 0, 1, '2'));
	/* A folder and an item. */
	CHECK(!renamed("d/e", "two", RENAME_EXCHANGE));
	CHECK(is_all(open("d/e", O_RDONLY), 0, 1, '1'));
	struct stat st;
	CHECK(!stat("two", &st) && S_ISDIR(st.st_mode));
	FAILS(renamed("d/e", "none", RENAME_EXCHANGE), ENOENT);
	FAILS(renamed("d", "d/e", RENAME_EXCHANGE), EINVAL);
	FAILS(renamed("d", "two", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL);
	FAILS(renamed("d", "two", 1 << 10), EINVAL);
	CHECK(!mkdir("d/in", 0700));
	FAILS(rename("d", "d/in/x"), EINVAL);
	CHECK(is_all(one, 0, 1, '1') && is_all(two, 0, 1, '2'));
}

/* A name that a listing has seen before and after is in every listing between, once, while others come and go. */
static void listings(void)
{
	enum { STAY = 300 };
	char name[32];
	for (int i = 0; i < STAY; i++) {
		snprintf(name, sizeof name, "stays-%d", i);
		make(name, 0, 0);
	}
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		for (int i = 0; i < 2000; i++) {
			snprintf(name, sizeof name, "goes-%d", i % 50);
			int fd = open(name, O_WRONLY | O_CREAT, 0600);
			CHECK(fd >= 0 && !close(fd) && (i % 3 == 0 || !unlink(name)));
		}
		exit(0);
	}
	int running = 1, status = 0;
	while (running) {
		running = waitpid(child, &status, WNOHANG) == 0;
		int seen[STAY] = { 0 }, number;
		DIR *dir = opendir(".");
		CHECK(dir);
		for (struct dirent *entry; (entry = readdir(dir));)
			if (sscanf(entry->d_name, "stays-%d", &number) == 1)
				seen[number]++;
		closedir(dir);
		for (int i = 0; i < STAY; i++)
			CHECK(seen[i] == 1);
	}
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	/* A place in a listing can be gone back to. */
	DIR *dir = opendir(".");
	for (int i = 0; i < 100; i++)
		CHECK(readdir(dir));
	long place = telldir(dir);
	char then[256];
	strcpy(then, readdir(dir)->d_name);
	while (readdir(dir))
		;
	seekdir(dir, place);
	CHECK(!strcmp(readdir(dir)->d_name, then));
	closedir(dir);
}

static void opens(void)
{
	make("f", 3, 'x');
	CHECK(!symlink("f", "link") && !symlink("loop", "loop") && !mkdir("d", 0700) && !symlink("../f", "d/out"));
	FAILS(open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
	FAILS(open("loop", O_RDONLY), ELOOP);
	FAILS(open("f", O_RDONLY | O_DIRECTORY), ENOTDIR);
	FAILS(open("f/", O_RDONLY), ENOTDIR);
	FAILS(open("d", O_RDWR), EISDIR);
	FAILS(open("d", O_WRONLY | O_CREAT, 0600), EISDIR);
	FAILS(open("link", O_WRONLY | O_CREAT | O_EXCL, 0600), EEXIST);
	FAILS(open(".", O_RDWR | O_TMPFILE, 0600), EOPNOTSUPP);
	int path = open("f", O_PATH);
	char byte;
	CHECK(path >= 0 && stat_of(path).st_size == 3);
	FAILS(read(path, &byte, 1), EBADF);
	/* Through a symlink, new and old. */
	CHECK(!symlink("new", "to-new") && close(open("to-new", O_WRONLY | O_CREAT, 0640)) == 0 && !access("new", F_OK));
	/* The mode of a file says what later opens may do, not what the one that makes it may. */
	int fd = open("readonly", O_RDWR | O_CREAT, 0400);
	CHECK(fd >= 0 && write(fd, "abc", 3) == 3 && is_all(fd, 0, 1, 'a'));
	FAILS(open("readonly", O_RDWR), EACCES);
	/* What openat2(2) resolves. */
	struct { uint64_t flags, mode, resolve; } how = { O_RDONLY, 0, 0x08 /* RESOLVE_BENEATH */ };
	int d = open("d", O_RDONLY | O_DIRECTORY);
	FAILS(syscall(SYS_openat2, d, "out", &how, sizeof how), EXDEV);
	how.resolve = 0x04; /* RESOLVE_NO_SYMLINKS */
	FAILS(syscall(SYS_openat2, AT_FDCWD, "link", &how, sizeof how), ELOOP);
	how.resolve = 0;
	CHECK(syscall(SYS_openat2, AT_FDCWD, "d/out", &how, sizeof how) >= 0);
}

/* --- between processes ---------------------------------------------------------------------------------------------- */

/* What a child answers about a lock: 0 it has it, else the errno. */
static int in_child(int (*ask)(void))
{
	int status;
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0)
		exit(ask());
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int flock_exclusive(void) { return flock(open("lock", O_RDWR), LOCK_EX | LOCK_NB) ? errno : 0; }
static int flock_shared(void) { return flock(open("lock", O_RDONLY), LOCK_SH | LOCK_NB) ? errno : 0; }

static int range(int fd, int command, short type, off_t from, off_t length)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = length };
	return fcntl(fd, command, &lock);
}
static int range_exclusive(void) { return range(open("lock", O_RDWR), F_SETLK, F_WRLCK, 10, 10) ? errno : 0; }
static int range_shared(void) { return range(open("lock", O_RDWR), F_SETLK, F_RDLCK, 10, 10) ? errno : 0; }
static int range_beside(void) { return range(open("lock", O_RDWR), F_SETLK, F_WRLCK, 20, 0) ? errno : 0; }
static int ofd_exclusive(void) { return range(open("lock", O_RDWR), F_OFD_SETLK, F_WRLCK, 10, 10) ? errno : 0; }

static int who_holds(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0 };
	if (fcntl(open("lock", O_RDWR), F_GETLK, &lock))
		return 1;
	return lock.l_type == F_WRLCK && lock.l_pid == getppid() && lock.l_start == 10 && lock.l_len == 10 ? 0 : 2;
}

static void deadlock(int fd)
{
	int ready[2];
	char byte = 0;
	CHECK(!pipe(ready) && !range(fd, F_SETLK, F_WRLCK, 0, 1));
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		int own = open("lock", O_RDWR);
		CHECK(!range(own, F_SETLK, F_WRLCK, 1, 1) && write(ready[1], &byte, 1) == 1);
		/* Waits for its parent, and has it when the parent gives up. */
		exit(range(own, F_SETLKW, F_WRLCK, 0, 1) ? errno : 0);
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	/* Who of the two is refused depends on who comes second. */
	int waited = range(fd, F_SETLKW, F_WRLCK, 1, 1), status;
	CHECK(waited == 0 || errno == EDEADLK);
	CHECK(!range(fd, F_SETLK, F_UNLCK, 0, 0));
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	CHECK(waited ? WEXITSTATUS(status) == 0 : WEXITSTATUS(status) == EDEADLK);
}

static void locks(void)
{
	int fd = make("lock", 100, 'x');
	CHECK(!flock(fd, LOCK_EX));
	CHECK(in_child(flock_exclusive) == EWOULDBLOCK && in_child(flock_shared) == EWOULDBLOCK);
	CHECK(!flock(fd, LOCK_SH) && in_child(flock_exclusive) == EWOULDBLOCK && in_child(flock_shared) == 0);
	CHECK(!flock(fd, LOCK_UN) && in_child(flock_exclusive) == 0);
	CHECK(!range(fd, F_SETLK, F_WRLCK, 10, 10));
	CHECK(in_child(range_exclusive) == EAGAIN && in_child(range_shared) == EAGAIN && in_child(range_beside) == 0);
	CHECK(in_child(who_holds) == 0 && in_child(ofd_exclusive) == EAGAIN);
	CHECK(!range(fd, F_SETLK, F_RDLCK, 10, 10) && in_child(range_shared) == 0 && in_child(range_exclusive) == EAGAIN);
	/* POSIX: the first descriptor of the file that a process closes takes all its locks; one of its own, with OFD. */
	CHECK(!close(open("lock", O_RDONLY)) && in_child(range_exclusive) == 0);
	CHECK(!range(fd, F_OFD_SETLK, F_WRLCK, 10, 10) && !close(open("lock", O_RDONLY)));
	CHECK(in_child(ofd_exclusive) == EAGAIN && in_child(range_exclusive) == EAGAIN);
	CHECK(!range(fd, F_OFD_SETLK, F_UNLCK, 0, 0));
	deadlock(fd);
}

static void watched(void)
{
	enum { ROOM = 1 << 16 };
	int watch = inotify_init1(IN_NONBLOCK);
	CHECK(watch >= 0 && inotify_add_watch(watch, ".", IN_ALL_EVENTS) >= 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		int fd = open("f", O_RDWR | O_CREAT, 0600);
		CHECK(fd >= 0 && write(fd, "x", 1) == 1 && !fchmod(fd, 0640) && !close(fd));
		CHECK(!rename("f", "g") && !mkdir("d", 0700) && !rmdir("d") && !unlink("g"));
		exit(0);
	}
	joined(child);
	static const struct { uint32_t mask; const char *name; } wanted[] = {
		{ IN_CREATE, "f" }, { IN_OPEN, "f" }, { IN_MODIFY, "f" }, { IN_ATTRIB, "f" }, { IN_CLOSE_WRITE, "f" },
		{ IN_MOVED_FROM, "f" }, { IN_MOVED_TO, "g" }, { IN_CREATE | IN_ISDIR, "d" }, { IN_DELETE | IN_ISDIR, "d" },
		{ IN_DELETE, "g" },
	};
	char *events = malloc(ROOM);
	ssize_t length = read(watch, events, ROOM);
	CHECK(events && length > 0);
	size_t next = 0;
	for (char *at = events; at < events + length;) {
		struct inotify_event *event = (struct inotify_event *)at;
		if (next < sizeof wanted / sizeof *wanted && event->mask == wanted[next].mask &&
		    !strcmp(event->len ? event->name : "", wanted[next].name))
			next++;
		at += sizeof *event + event->len;
	}
	if (next < sizeof wanted / sizeof *wanted)
		printf("event %zu of those that must come has not\n", next);
	CHECK(next == sizeof wanted / sizeof *wanted);
	free(events);
}

static sigjmp_buf fault;
static void on_fault(int number) { siglongjmp(fault, number); }

static void mapped(void)
{
	int fd = make("map", 2 * BLOCK + 100, 'x');
	volatile char *at = mmap(NULL, 3 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char back[BLOCK];
	CHECK(at != MAP_FAILED);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		int own = open("map", O_RDWR);
		volatile char *there = mmap(NULL, 3 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0);
		CHECK(there != MAP_FAILED);
		there[10] = 'c';
		CHECK(pwrite(own, "w", 1, 20) == 1);
		exit(0);
	}
	joined(child);
	/* A mapping, another one, write and read: all see one content. */
	CHECK(at[10] == 'c' && at[20] == 'w' && pread(fd, back, 30, 0) == 30 && back[10] == 'c' && back[20] == 'w');
	at[2 * BLOCK + 50] = 'e';
	CHECK(pread(fd, back, 1, 2 * BLOCK + 50) == 1 && back[0] == 'e');
	CHECK(stat_of(fd).st_size == 2 * BLOCK + 100 && !ftruncate(fd, 3 * BLOCK));
	CHECK(is_all(fd, 2 * BLOCK + 100, 3 * BLOCK, 0) && at[2 * BLOCK + 200] == 0 && at[2 * BLOCK + 50] == 'e');
	signal(SIGBUS, on_fault);
	CHECK(!ftruncate(fd, BLOCK));
	if (sigsetjmp(fault, 1) == 0) {
		at[2 * BLOCK] = '!';
		CHECK(!"a page behind the end can be written");
	}
	CHECK(!ftruncate(fd, 3 * BLOCK) && at[2 * BLOCK + 50] == 0 && at[BLOCK] == 0 && at[10] == 'c');
	volatile char *private = mmap(NULL, 3 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(private != MAP_FAILED);
	private[10] = 'p';
	CHECK(at[10] == 'c');
	/* A mapping outlives its descriptor. */
	CHECK(!close(fd));
	at[30] = 'l';
	CHECK(!msync((void *)at, 3 * BLOCK, MS_SYNC) && !munmap((void *)at, 3 * BLOCK));
	CHECK(pread(open("map", O_RDONLY), back, 31, 0) == 31 && back[30] == 'l' && back[10] == 'c');
	FAILS(mmap(NULL, BLOCK, PROT_WRITE, MAP_SHARED, open("map", O_RDONLY), 0) == MAP_FAILED ? -1 : 0, EACCES);
}

static void sockets(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX, .sun_path = "s" };
	struct stat st;
	char byte = 0;
	int server = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(server >= 0 && !bind(server, (void *)&name, sizeof name) && !listen(server, 1));
	CHECK(!stat("s", &st) && S_ISSOCK(st.st_mode));
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		int client = socket(AF_UNIX, SOCK_STREAM, 0);
		CHECK(!connect(client, (void *)&name, sizeof name) && write(client, "!", 1) == 1);
		exit(0);
	}
	int client = accept(server, NULL, NULL);
	CHECK(client >= 0 && read(client, &byte, 1) == 1 && byte == '!');
	joined(child);
	FAILS(open("s", O_RDWR), ENXIO);
	FAILS(bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, sizeof name), EADDRINUSE);
	CHECK(!close(server));
	FAILS(connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, sizeof name), ECONNREFUSED);
	CHECK(!unlink("s"));
}

/* --- times -------------------------------------------------------------------------------------------------------- */

static void times(void)
{
	int fd = make("f", 3, 'x');
	static const struct timespec moments[] = {
		{ 0, 1 }, { 1, 999999999 }, { -1, 500000000 }, { -1000000000, 7 }, { 4102444800, 123456789 }, { 7258118400, 3 },
	};
	for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
		struct timespec both[2] = { moments[i], { 1000, 2000 } };
		CHECK(!futimens(fd, both));
		struct stat st = stat_of(fd), again;
		CHECK(st.st_atim.tv_sec == both[0].tv_sec && st.st_atim.tv_nsec == both[0].tv_nsec);
		CHECK(!stat("f", &again) && again.st_atim.tv_nsec == both[0].tv_nsec && again.st_mtim.tv_nsec == 2000);
	}
	struct timespec omit[2] = { { 0, UTIME_OMIT }, { 12, 13 } }, now[2] = { { 0, UTIME_NOW }, { 0, UTIME_OMIT } };
	CHECK(!futimens(fd, omit) && stat_of(fd).st_atim.tv_sec == 7258118400 && stat_of(fd).st_mtim.tv_nsec == 13);
	CHECK(!futimens(fd, now) && stat_of(fd).st_atim.tv_sec != 7258118400 && stat_of(fd).st_mtim.tv_nsec == 13);
	/* Times that no clock will ever tell: whatever becomes of them, the next call is served. */
	static const int64_t ends[] = { INT64_MIN, INT64_MIN + 1, INT64_MAX, INT64_MAX - 1 };
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
		struct timespec end[2] = { { ends[i], 999999999 }, { ends[i], 1 } };
		(void)!futimens(fd, end);
		CHECK(stat_of(fd).st_size == 3 && is_all(fd, 0, 3, 'x'));
	}
	/* A write sets the time of the contents and that of the change, a read neither; chmod sets the latter alone. */
	CHECK(!futimens(fd, omit) && pwrite(fd, "y", 1, 0) == 1 && stat_of(fd).st_mtim.tv_sec > 1000000000);
	CHECK(!futimens(fd, omit));
	struct stat before = stat_of(fd);
	char byte;
	CHECK(pread(fd, &byte, 1, 0) == 1 && stat_of(fd).st_mtim.tv_nsec == 13);
	CHECK(stat_of(fd).st_ctim.tv_sec == before.st_ctim.tv_sec && stat_of(fd).st_ctim.tv_nsec == before.st_ctim.tv_nsec);
	usleep(20000);
	CHECK(!fchmod(fd, 0640) && stat_of(fd).st_mtim.tv_nsec == 13);
	struct stat after = stat_of(fd);
	CHECK(after.st_ctim.tv_sec > before.st_ctim.tv_sec || after.st_ctim.tv_nsec != before.st_ctim.tv_nsec);
	/* A write through a mapping, too. */
	CHECK(!futimens(fd, omit));
	char *at = mmap(NULL, 3, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED);
	at[0] = 'm';
	CHECK(!msync(at, 3, MS_SYNC) && stat_of(fd).st_mtim.tv_sec > 1000000000);
}

/* --- tools -------------------------------------------------------------------------------------------------------- */

static int quota(const char *device, const char *uid, const char *kib)
{
	struct dqblk limit = { .dqb_bhardlimit = strtoull(kib, NULL, 10), .dqb_bsoftlimit = 0, .dqb_valid = QIF_BLIMITS };
	if (quotactl(QCMD(Q_SETQUOTA, USRQUOTA), device, atoi(uid), (void *)&limit)) {
		puts(strerrorname_np(errno));
		return 1;
	}
	return 0;
}

static int cut(const char *path)
{
	if (open(path, O_RDONLY | O_TRUNC) >= 0)
		return 0;
	puts(strerrorname_np(errno));
	return 1;
}

static int overwrite(const char *path, long offset, long length, int byte)
{
	enum { PART = 65536 };
	char *bytes = filled(PART, byte);
	int fd = open(path, O_WRONLY);
	long done = 0;
	if (fd < 0) {
		puts(strerrorname_np(errno));
		return 1;
	}
	while (done < length) {
		long part = length - done < PART ? length - done : PART;
		ssize_t n = pwrite(fd, bytes, (size_t)part, offset + done);
		if (n < 0)
			break;
		done += n;
	}
	printf("%ld %s\n", done, done < length ? strerrorname_np(errno) : fsync(fd) ? strerrorname_np(errno) : "whole");
	return 0;
}

int main(int argc, char **argv)
{
	static const struct { const char *word; void (*scenario)(void); } scenarios[] = {
		{ "space", space }, { "holes", holes }, { "direct", direct }, { "append", append }, { "vectors", vectors },
		{ "unlinked", unlinked }, { "renames", renames }, { "listings", listings }, { "opens", opens },
		{ "locks", locks }, { "watched", watched }, { "mapped", mapped }, { "sockets", sockets }, { "times", times },
	};
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc == 5 && !strcmp(argv[1], "quota"))
		return quota(argv[2], argv[3], argv[4]);
	if (argc == 3 && !strcmp(argv[1], "cut"))
		return cut(argv[2]);
	if (argc == 6 && !strcmp(argv[1], "overwrite"))
		return overwrite(argv[2], atol(argv[3]), atol(argv[4]), *argv[5]);
	for (size_t i = 0; argc == 3 && i < sizeof scenarios / sizeof *scenarios; i++) {
		if (!strcmp(argv[1], scenarios[i].word)) {
			CHECK(!chdir(argv[2]));
			scenarios[i].scenario();
			return 0;
		}
	}
	fputs("posix: see its source for the words that it knows\n", stderr);
	return 2;
}
