/* What the suites need and no ordinary tool does: system calls one by one, with the error's name as the answer.
 *
 *   probe open FLAGS PATH            FLAGS of r, w, +, t (O_TRUNC), a, p (O_PATH, then again through /proc/self/fd)
 *   probe mmap shared|private PATH   prints the contents through a mapping
 *   probe mmapwrite PATH TEXT        writes the text at the start through a shared mapping
 *   probe exec PATH                  execve(2) without a shell in between
 *   probe handle-save PATH FILE      name_to_handle_at(2)
 *   probe handle-open MOUNT FILE     open_by_handle_at(2), prints the contents
 *   probe copy-range|sendfile|splice FROM TO
 *   probe rename|exchange FROM TO    renameat2(2), as mv(1) would not
 *   probe link FROM TO
 *   probe cat PATH                   also to be installed set-uid
 *   probe hold FLAGS PATH            opens, then obeys lines of standard input: read, map (maps, keeps), touch (reads
 *                                    the mapping), write TEXT, fsync, pid, anything else; one line of answer for each
 *   probe pass UID GID PATH          opens PATH as that user in a child, which hands the descriptor to this process
 *                                    (root); then as hold
 *   probe watch WANTED PATH STOP     opens and reads again and again until STOP exists; WANTED is yes or an error's name;
 *                                    says how often it was so, or what else there was
 *   probe bind PATH                  makes a socket there and leaves it
 *   probe answer PATH TEXT           makes a socket there, answers who calls first with the text, and leaves the socket
 *   probe call PATH                  calls there and prints the answer
 *   probe notified PATH              is a service manager's socket there: prints what it is told, until STOPPING=1
 *   probe fill DIR FROM TO           makes items DIR/item-N with the content N
 *   probe append PATH COUNT          appends COUNT numbered lines with an fsync after each, printing each number
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int fail(const char *call)
{
	printf("%s: %s\n", call, strerrorname_np(errno));
	fflush(stdout);
	return 1;
}

static int open_flags(const char *flags, const char *path)
{
	int mode = strchr(flags, '+') ? O_RDWR : strchr(flags, 'w') ? O_WRONLY : O_RDONLY;
	mode |= strchr(flags, 't') ? O_TRUNC : 0;
	mode |= strchr(flags, 'a') ? O_APPEND : 0;
	if (strchr(flags, 'p')) {
		char link[64];
		int anchor = open(path, O_PATH);
		if (anchor < 0)
			return -1;
		snprintf(link, sizeof link, "/proc/self/fd/%d", anchor);
		return open(link, mode);
	}
	return open(path, mode);
}

static int print_all(int fd)
{
	char buffer[65536];
	ssize_t n;
	while ((n = read(fd, buffer, sizeof buffer)) > 0)
		fwrite(buffer, 1, (size_t)n, stdout);
	return n < 0 ? fail("read") : 0;
}

static sigjmp_buf fault;
static void on_fault(int number)
{
	siglongjmp(fault, number);
}

static int map(const char *how, const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return fail("open");
	if (fstat(fd, &st))
		return fail("fstat");
	char *at = mmap(NULL, (size_t)st.st_size, PROT_READ, strcmp(how, "shared") ? MAP_PRIVATE : MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return fail("mmap");
	signal(SIGBUS, on_fault);
	if (sigsetjmp(fault, 1)) {
		puts("SIGBUS");
		return 1;
	}
	fwrite(at, 1, (size_t)st.st_size, stdout);
	return 0;
}

static int map_write(const char *path, const char *text)
{
	int fd = open(path, O_RDWR);
	if (fd < 0)
		return fail("open");
	char *at = mmap(NULL, strlen(text), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return fail("mmap");
	memcpy(at, text, strlen(text));
	if (msync(at, strlen(text), MS_SYNC))
		return fail("msync");
	return 0;
}

struct saved {
	int mount_id;
	struct file_handle handle;
	unsigned char room[MAX_HANDLE_SZ];
};

static int handle_save(const char *path, const char *file)
{
	struct saved saved = { .handle = { .handle_bytes = MAX_HANDLE_SZ } };
	if (name_to_handle_at(AT_FDCWD, path, &saved.handle, &saved.mount_id, 0))
		return fail("name_to_handle_at");
	int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || write(fd, &saved, sizeof saved) != sizeof saved)
		return fail("save");
	return 0;
}

static int handle_open(const char *mount, const char *file)
{
	struct saved saved;
	int from = open(file, O_RDONLY), at = open(mount, O_RDONLY | O_DIRECTORY);
	if (from < 0 || at < 0 || read(from, &saved, sizeof saved) != sizeof saved)
		return fail("load");
	int fd = open_by_handle_at(at, &saved.handle, O_RDONLY);
	return fd < 0 ? fail("open_by_handle_at") : print_all(fd);
}

static int transfer(const char *how, const char *from, const char *to)
{
	ssize_t n;
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (in < 0)
		return fail("open");
	if (out < 0)
		return fail("open target");
	if (!strcmp(how, "copy-range")) {
		while ((n = copy_file_range(in, NULL, out, NULL, 1 << 20, 0)) > 0)
			;
	} else if (!strcmp(how, "sendfile")) {
		while ((n = sendfile(out, in, NULL, 1 << 20)) > 0)
			;
	} else {
		int pipes[2];
		if (pipe(pipes))
			return fail("pipe");
		while ((n = splice(in, NULL, pipes[1], NULL, 65536, 0)) > 0)
			if (splice(pipes[0], NULL, out, NULL, (size_t)n, 0) != n)
				return fail("splice");
	}
	return n < 0 ? fail(how) : 0;
}

/* One line for what a descriptor's file holds: its first line, or the error. */
static void answer_read(int fd)
{
	char buffer[4096];
	ssize_t n = pread(fd, buffer, sizeof buffer - 1, 0);
	if (n < 0) {
		puts(strerrorname_np(errno));
		return;
	}
	buffer[n] = 0;
	buffer[strcspn(buffer, "\n")] = 0;
	puts(buffer);
}

static void answer_touch(const volatile char *mapping)
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

static int obey(int fd)
{
	char line[1024];
	char *mapping = NULL;
	signal(SIGBUS, on_fault);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!strcmp(line, "read")) {
			answer_read(fd);
		} else if (!strcmp(line, "map")) {
			mapping = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
			if (mapping == MAP_FAILED) {
				mapping = NULL;
				puts(strerrorname_np(errno));
			} else {
				answer_touch(mapping);
			}
		} else if (!strcmp(line, "touch")) {
			answer_touch(mapping);
		} else if (!strncmp(line, "write ", 6)) {
			ssize_t n = pwrite(fd, line + 6, strlen(line + 6), 0);
			puts(n < 0 ? strerrorname_np(errno) : "written");
		} else if (!strcmp(line, "fsync")) {
			puts(fsync(fd) ? strerrorname_np(errno) : "synced");
		} else if (!strcmp(line, "pid")) {
			printf("%d\n", getpid());
		} else {
			puts("here");
		}
		fflush(stdout);
	}
	return 0;
}

static int pass(uid_t uid, gid_t gid, const char *path)
{
	int pair[2];
	char byte = 0;
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .room = { 0 } };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room,
				  .msg_controllen = sizeof control.room };
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return fail("socketpair");
	pid_t child = fork();
	if (child < 0)
		return fail("fork");
	if (child == 0) {
		if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
			_exit(2);
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			_exit(3);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
		_exit(sendmsg(pair[0], &message, 0) == 1 ? 0 : 4);
	}
	int status, fd;
	waitpid(child, &status, 0);
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		puts("the child could not open");
		return 1;
	}
	if (recvmsg(pair[1], &message, 0) != 1)
		return fail("recvmsg");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return obey(fd);
}

static int watch(const char *wanted, const char *path, const char *stop)
{
	char byte;
	const char *found;
	for (long times = 0;; times++) {
		int fd = open(path, O_RDONLY);
		found = fd < 0 ? strerrorname_np(errno) : read(fd, &byte, 1) == 1 ? "yes" : strerrorname_np(errno);
		if (fd >= 0)
			close(fd);
		if (strcmp(found, wanted)) {
			printf("%s, after %ld times %s\n", found, times, wanted);
			return 1;
		}
		if (access(stop, F_OK) == 0) {
			printf("%ld times as it must be\n", times + 1);
			return 0;
		}
	}
}

static int fill(const char *dir, long from, long to)
{
	char name[4096], text[32];
	for (long i = from; i < to; i++) {
		snprintf(name, sizeof name, "%s/item-%ld", dir, i);
		int n = snprintf(text, sizeof text, "%ld\n", i);
		int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0660);
		if (fd < 0 || write(fd, text, (size_t)n) != n || close(fd))
			return fail(name);
	}
	return 0;
}

static int append(const char *path, long count)
{
	char text[32];
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0660);
	if (fd < 0)
		return fail("open");
	for (long i = 0; i < count; i++) {
		int n = snprintf(text, sizeof text, "line %ld\n", i);
		if (write(fd, text, (size_t)n) != n)
			return fail("write");
		if (fsync(fd))
			return fail("fsync");
		printf("%ld\n", i);
		fflush(stdout);
	}
	return 0;
}

static int address(struct sockaddr_un *at, const char *path, int type)
{
	*at = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof at->sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(at->sun_path, path);
	return socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
}

static int answer(const char *path, const char *text)
{
	struct sockaddr_un at;
	int fd = address(&at, path, SOCK_STREAM);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at))
		return fail("bind");
	if (!text)
		return 0;
	if (listen(fd, 1))
		return fail("listen");
	int peer = accept(fd, NULL, NULL);
	size_t len = strlen(text);
	return peer < 0 || write(peer, text, len) != (ssize_t)len || close(peer) ? fail("accept") : 0;
}

static int call(const char *path)
{
	struct sockaddr_un at;
	int fd = address(&at, path, SOCK_STREAM);
	return fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) ? fail("connect") : print_all(fd);
}

static int notified(const char *path)
{
	struct sockaddr_un at;
	char text[4096];
	int fd = address(&at, path, SOCK_DGRAM);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at))
		return fail("bind");
	do {
		ssize_t n = recv(fd, text, sizeof text - 1, 0);
		if (n < 0)
			return fail("recv");
		text[n] = 0;
		printf("%s\n", text);
		fflush(stdout);
	} while (strcmp(text, "STOPPING=1"));
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	const char *a = argc > 2 ? argv[2] : "", *b = argc > 3 ? argv[3] : "", *c = argc > 4 ? argv[4] : "";
	if (!strcmp(what, "open")) {
		int fd = open_flags(a, b);
		return fd < 0 ? fail("open") : 0;
	}
	if (!strcmp(what, "mmap"))
		return map(a, b);
	if (!strcmp(what, "mmapwrite"))
		return map_write(a, b);
	if (!strcmp(what, "exec")) {
		execl(a, a, (char *)NULL);
		return fail("exec");
	}
	if (!strcmp(what, "handle-save"))
		return handle_save(a, b);
	if (!strcmp(what, "handle-open"))
		return handle_open(a, b);
	if (!strcmp(what, "copy-range") || !strcmp(what, "sendfile") || !strcmp(what, "splice"))
		return transfer(what, a, b);
	if (!strcmp(what, "rename"))
		return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0) ? fail("rename") : 0;
	if (!strcmp(what, "exchange"))
		return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) ? fail("exchange") : 0;
	if (!strcmp(what, "link"))
		return link(a, b) ? fail("link") : 0;
	if (!strcmp(what, "cat")) {
		int fd = open(a, O_RDONLY);
		return fd < 0 ? fail("open") : print_all(fd);
	}
	if (!strcmp(what, "hold")) {
		int fd = open_flags(a, b);
		return fd < 0 ? fail("open") : obey(fd);
	}
	if (!strcmp(what, "pass"))
		return pass((uid_t)atol(a), (gid_t)atol(b), c);
	if (!strcmp(what, "watch"))
		return watch(a, b, c);
	if (!strcmp(what, "bind"))
		return answer(a, NULL);
	if (!strcmp(what, "answer"))
		return answer(a, b);
	if (!strcmp(what, "call"))
		return call(a);
	if (!strcmp(what, "notified"))
		return notified(a);
	if (!strcmp(what, "fill"))
		return fill(a, atol(b), atol(c));
	if (!strcmp(what, "append"))
		return append(a, atol(b));
	fputs("probe: see its source for the words that it knows\n", stderr);
	return 2;
}
