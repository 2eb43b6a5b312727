/*
 * A client that means harm: speaks the machine's protocol from a seed, wrongly at a random place, and hangs up at a
 * random step.
 *
 *   hostile SOCKET SEED SECONDS
 *
 * It knows the layout of the protocol's messages (crates/wire) in numbers of its own, so that a mistake there does
 * not hide itself here. It prints how many attempts it made, and how often each step was reached.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	MAX_SLOTS = 4096,
	DATA_SIZE = 64 * 4096,
	SLOTS = 4096,
	DATA = SLOTS + MAX_SLOTS * PAGE,
	/* Turns of a slot. */
	IDLE = 0,
	CALL = 1,
	UPCALL = 2,
	ANSWER = 3,
	REPLY = 4,
	CLOSED = 5,
	/* Requests on the channel. */
	OP_OPEN = 1,
	OP_ATTACH = 2,
	OP_THREAD = 3,
	OP_END = 4,
	OP_USERFAULTFD = 5,
	OP_FORK = 6,
	/* Calls in a slot. */
	CALL_IOCTL = 2,
};

#define REGION_SIZE ((size_t)DATA + (size_t)MAX_SLOTS * DATA_SIZE)

static const char *path;
static uint64_t seed;
static uint64_t attempts, welcomed, attached, called, answered;

static uint64_t random64(void)
{
	seed += 0x9e3779b97f4a7c15;
	uint64_t x = seed;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t below(uint64_t limit)
{
	return random64() % limit;
}

/* A number that a careless server trips over. */
static uint64_t nasty(void)
{
	static const uint64_t values[] = { 0, 1, 2, 7, 4095, 4096, 4097, 1ul << 31, 1ul << 32, 1ul << 47, 1ul << 63, ~0ul,
					   ~0xffful, 0x500000000000 };

	switch (below(4)) {
	case 0:
		return random64();
	case 1:
		return values[below(sizeof(values) / sizeof(*values))] + below(3);
	case 2:
		return below(1 << 20) * PAGE;
	default:
		return below(64);
	}
}

static int wrong_descriptor(void)
{
	int pair[2];

	switch (below(7)) {
	case 0:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case 1:
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
			return -1;
		close(pair[1]);
		return pair[0];
	case 2:
		return memfd_create("wrong", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	case 3:
		return syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	case 4:
		if (pipe2(pair, O_CLOEXEC))
			return -1;
		close(pair[0]);
		return pair[1];
	case 5:
		return open("/", O_PATH | O_CLOEXEC);
	default:
		return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	}
}

static int send_message(int socket, const void *bytes, size_t length, const int *descriptors, int count)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(8 * sizeof(int))];
	} control = { 0 };
	struct iovec part = { (void *)bytes, length };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (count) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), descriptors, count * sizeof(int));
	}
	return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0;
}

/* Waits a moment for a message; its length, or -1. Descriptors that it does not bring are -1. */
static ssize_t receive(int socket, void *bytes, size_t length, int descriptors[2])
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(8 * sizeof(int))];
	} control;
	struct iovec part = { bytes, length };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	struct pollfd ready = { socket, POLLIN, 0 };

	descriptors[0] = descriptors[1] = -1;
	if (poll(&ready, 1, 50) <= 0)
		return -1;
	const ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *header = got >= 0 ? CMSG_FIRSTHDR(&message) : NULL;

	if (header && header->cmsg_type == SCM_RIGHTS) {
		const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		memcpy(descriptors, CMSG_DATA(header), (count < 2 ? count : 2) * sizeof(int));
	}
	return got;
}

static int connect_door(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const int door = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (connect(door, (void *)&address, sizeof(address))) {
		printf("nobody is at %s: %s\n", path, strerror(errno));
		exit(3);
	}
	return door;
}

static void noise_on(int socket)
{
	uint8_t bytes[600];
	int descriptors[4], count = below(5);
	size_t length = below(4) ? 1 + below(sizeof(bytes) - 1) : 32 + 8 * below(2);

	for (size_t i = 0; i < length; i++)
		bytes[i] = random64();
	if (!below(3))
		length = snprintf((char *)bytes, sizeof(bytes), "{\"request\":\"%s\"%s", below(2) ? "status" : "noise",
				  below(2) ? "}" : ",[[[[[[");
	for (int i = 0; i < count; i++) {
		descriptors[i] = wrong_descriptor();
		if (descriptors[i] < 0)
			count = i;
	}
	send_message(socket, bytes, length, descriptors, count);
	for (int i = 0; i < count; i++)
		close(descriptors[i]);
}

/* One client and what it has. */
static struct {
	int channel, uffd, device, view, window, kick;
	uint8_t *region;
	uint64_t handle, slot, base;
} us;

static int request(uint32_t op, uint64_t a, uint64_t b, int descriptor, int64_t answer[5], int descriptors[2])
{
	const uint64_t message[5] = { op, a, b, below(8) ? 0 : nasty(), 0 };

	if (send_message(us.channel, message, sizeof(message), &descriptor, descriptor >= 0))
		return 1;
	return receive(us.channel, answer, 40, descriptors) != 40;
}

static _Atomic uint32_t *turn_of(uint64_t slot)
{
	return (void *)(us.region + SLOTS + slot * PAGE);
}

static uint64_t *words_of(uint64_t slot)
{
	return (void *)(us.region + SLOTS + slot * PAGE + 8);
}

/* Bytes for the machine that asks for some: sometimes what it wants. */
static void serve(uint64_t slot)
{
	uint64_t *words = words_of(slot);
	uint8_t *data = us.region + DATA + slot * DATA_SIZE;
	const uint64_t length = words[2] <= DATA_SIZE ? words[2] : DATA_SIZE;

	if (below(4)) {
		uint64_t fields[8] = { 0 };

		memset(data, below(2) ? 0 : random64(), length < PAGE ? length : PAGE);
		if (length == 4096 && below(4)) {
			/* A SECS: size, base, SSA frames, attributes, XFRM. */
			fields[0] = 1 << 20;
			fields[1] = us.base;
			fields[2] = 1;
			fields[6] = 4;
			fields[7] = 3;
			memset(data, 0, length);
			memcpy(data, fields, sizeof(fields));
		} else if (length == 48) {
			/* Arguments of ADD_PAGES: source, offset, length, SECINFO, flags, count. */
			fields[0] = 0x10000;
			fields[1] = below(8) * PAGE;
			fields[2] = (1 + below(64)) * PAGE;
			fields[3] = 0x20000;
			fields[4] = below(2);
			memcpy(data, fields, 48);
		} else if (length == 64) {
			fields[0] = below(2) ? 0x203 : 0x100;
			memcpy(data, fields, 64);
		} else if (length == 8) {
			fields[0] = 0x30000;
			memcpy(data, fields, 8);
		}
	} else {
		for (uint64_t i = 0; i + 8 <= length && i < 512; i += 8) {
			const uint64_t noise = nasty();

			memcpy(data + i, &noise, 8);
		}
	}
	words[1] = below(8) ? length : nasty();
}

/* A call, and answers to what the machine asks; gives up after some milliseconds. */
static void make_call(uint64_t call, uint64_t first, uint64_t second)
{
	_Atomic uint32_t *turn = turn_of(us.slot);
	uint64_t *words = words_of(us.slot);

	words[0] = call;
	words[1] = below(6) ? us.handle : nasty();
	words[2] = first;
	words[3] = second;
	for (int i = 4; i < 10; i++)
		words[i] = nasty();
	*turn = CALL;
	syscall(SYS_futex, turn, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	called++;
	for (int patience = 0; patience < 60; patience++) {
		const uint32_t seen = *turn;

		if (seen == REPLY) {
			answered++;
			*turn = IDLE;
			return;
		}
		if (seen == CLOSED)
			return;
		if (seen == UPCALL) {
			if (!below(200))
				return; /* Let it wait. */
			serve(us.slot);
			*turn = ANSWER;
			syscall(SYS_futex, turn, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
			patience = 0;
			continue;
		}
		const struct timespec moment = { 0, 100000 };

		nanosleep(&moment, NULL);
	}
}

static void abuse_slot(void)
{
	static const uint64_t commands[] = { 0x4008a400, 0xc030a401, 0x4008a402, 0x4008a403, 0xc028a405,
					     0xc028a406, 0xc018a407, 0xa404, 0 };

	if (below(4)) {
		make_call(CALL_IOCTL, commands[0], 0x200);
		for (int i = below(4); i; i--)
			make_call(CALL_IOCTL, commands[1], 0x200);
	}
	for (int i = below(30); i; i--) {
		if (!below(3))
			make_call(CALL_IOCTL, commands[below(9)], nasty());
		else
			make_call(below(12), below(2) ? us.base + below(300) * PAGE : nasty(), nasty());
	}
}

/* Writes noise into the shared memory: words, turns of all slots, and who is inside. */
static void scribble(void)
{
	for (int i = 0; i < 2000; i++) {
		const uint64_t slot = below(8);

		if (!below(3)) {
			*turn_of(slot) = below(7);
			syscall(SYS_futex, turn_of(slot), FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
		} else {
			words_of(slot)[below(30)] = nasty();
		}
	}
	/* The header is the machine's. */
	memset(us.region, random64(), PAGE);
}

static void spoil_files(void)
{
	const int file = below(2) ? us.view : us.window;

	if (!below(3) && ftruncate(file, nasty() % (1 << 30)))
		return;
	if (!below(3) && fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20))
		return;
	if (!below(3))
		fcntl(file, F_ADD_SEALS, 1 << below(5));
	for (int i = 0; i < 50; i++) {
		const uint64_t noise = nasty();

		if (pwrite(file, &noise, sizeof(noise), below(1 << 18)) < 0)
			return;
	}
}

static void *scribbler(void *unused)
{
	(void)unused;
	scribble();
	return NULL;
}

static void attempt(void)
{
	int64_t answer[5];
	int got[2], pair[2];
	const int door = connect_door();
	const uint64_t steps = below(4) ? 5 + below(4) : below(5);

	memset(&us, 0, sizeof(us));
	us.channel = us.uffd = us.device = us.view = us.window = us.kick = -1;
	us.base = 0x500000000000 + below(1 << 20) * (1 << 20);
	attempts++;
	/* A door that has carried nonsense may be closed. */
	if (!below(6))
		for (int i = below(10); i; i--)
			noise_on(door);
	if (!steps || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		goto hang_up;
	us.channel = pair[0];
	const uint32_t hello[8] = { 0x78677375, below(20) ? 1 : nasty(), nasty(), 0, nasty(), 0, nasty(), 0 };

	send_message(door, hello, sizeof(hello), &pair[1], 1);
	close(pair[1]);
	if (steps == 1 || receive(us.channel, answer, 8, got) != 8 || got[0] < 0)
		goto hang_up;
	us.region = mmap(NULL, REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, got[0], 0);
	close(got[0]);
	if (us.region == MAP_FAILED) {
		us.region = NULL;
		goto hang_up;
	}
	welcomed++;
	if (below(5)) {
		struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_SHMEM };

		us.uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
		if (below(5))
			ioctl(us.uffd, UFFDIO_API, &api);
		if (request(OP_USERFAULTFD, 0, 0, us.uffd, answer, got))
			goto hang_up;
	}
	if (steps == 2 || request(OP_THREAD, nasty(), 0, -1, answer, got))
		goto hang_up;
	us.kick = got[0];
	us.slot = answer[0] ? below(MAX_SLOTS) : (uint64_t)answer[1] % MAX_SLOTS;
	if (steps == 3 || request(OP_OPEN, below(8) ? 1 : nasty(), 2, -1, answer, got))
		goto hang_up;
	us.device = got[0];
	if (steps == 4 || request(OP_ATTACH, 0, 0, us.device, answer, got))
		goto hang_up;
	us.view = got[0];
	us.window = got[1];
	us.handle = answer[1];
	attached++;
	if (steps > 5) {
		pthread_t thread;
		const int noisy = !below(3) && !pthread_create(&thread, NULL, scribbler, NULL);

		abuse_slot();
		if (noisy)
			pthread_join(thread, NULL);
	}
	if (steps > 6)
		spoil_files();
	if (steps > 7) {
		scribble();
		for (int i = 0; i < 20; i++) {
			const int wrong = below(2) ? wrong_descriptor() : -1;
			const int failed = request(below(9), nasty(), nasty(), wrong, answer, got);

			close(wrong);
			close(got[0]);
			close(got[1]);
			if (failed)
				break;
		}
	}
	if (!below(3))
		noise_on(us.channel);
	/* A call that nobody waits for. */
	if (!below(3)) {
		words_of(us.slot)[0] = below(12);
		words_of(us.slot)[1] = us.handle;
		*turn_of(us.slot) = CALL;
		syscall(SYS_futex, turn_of(us.slot), FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	}
hang_up:
	if (us.region)
		munmap(us.region, REGION_SIZE);
	const int all[] = { us.channel, us.uffd, us.device, us.view, us.window, us.kick, door };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (all[i] >= 0)
			close(all[i]);
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		printf("see the head of the source for usage\n");
		return 2;
	}
	path = argv[1];
	seed = strtoull(argv[2], NULL, 0);
	const time_t end = time(NULL) + atol(argv[3]);

	while (time(NULL) < end)
		attempt();
	printf("%lu attempts, %lu welcomed, %lu attached, %lu calls, %lu answered\n", attempts, welcomed, attached, called,
	       answered);
	return 0;
}
