/*
 * A kit for enclaves: writes them as SGX streams, signs them, and loads whatever stream and signature it is given
 * through /dev/sgx_enclave. It knows Linux's interface, the stream's format, and nothing of who is behind the device.
 *
 *   enclave_kit stream LAYOUT FILE             writes a stream; see `layouts` for what there is
 *   enclave_kit sign STREAM KEY SIGNATURE      measures and signs it with OpenSSL (attributes: MODE64BIT)
 *   enclave_kit load STREAM SIGNATURE STEP...  loads it, with the attributes that are signed, then takes the steps:
 *
 *     flips           before EINIT: tries it with every single byte of the signature changed, in three ways
 *     enter           enters by each thread control structure
 *     report          prints the identity that EREPORT states
 *     seal enclave|signer   prints the seal key
 *     target FILE     writes this enclave's TARGETINFO
 *     prove FILE OUT SEED   writes a report for the enclave of that TARGETINFO
 *     check FILE      verifies a report with this enclave's report key
 *     fill SEED       writes a word into each page of the heap
 *     sweep SEED      reads them: prints how many are right, wrong, or refused by an exception
 *     spin            a thread counts inside the enclave for ever; prints ten times a second how far it has come, if it has
 *     move SEED       moves some pages of the heap's mapping away and back; prints what becomes of them
 *     hold            uses all that is not heap, prints "holding" and waits for a line on standard input; and once more
 *                     if that is "again"
 *
 * All streams of this kit hold the same code. It takes requests only from a program that knows its number, and
 * leaves at once otherwise, so that any loader can enter it.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "entry.h"
#include "sign.h"

enum {
	PAGE = 4096,
	CHUNK = 256,
	EREPORT = 0,
	EGETKEY = 1,
	EENTER = 2,
	ERESUME = 3,
	EEXIT = 4,
	R = 1,
	W = 2,
	X = 4,
	TCS = 0x100,
	REG = 0x200,
	TYPE = 0xff00,
	KEY_REPORT = 3,
	KEY_SEAL = 4,
};

#define MAGIC 0x6b69742d75736778ul

/* What the enclave does: 0 nothing, 1 copies (a to, b from, c bytes), 2 a leaf (a number, b c d registers), 3 counts. */
struct request {
	uint64_t operation, a, b, c, d, result;
};

extern const uint8_t kit_start[], kit_retreat[], kit_end[];
__asm__(".pushsection .rodata\n"
	"kit_start:\n"
	"	mov %rcx, %r8\n"
	"	movabs $0x6b69742d75736778, %r9\n"
	"	cmp %r9, %rdx\n"
	"	jne 9f\n"
	"	mov (%rdi), %rax\n"
	"	cmp $1, %rax\n"
	"	je 1f\n"
	"	cmp $2, %rax\n"
	"	je 2f\n"
	"	cmp $3, %rax\n"
	"	je 3f\n"
	"9:	mov %r8, %rbx\n"
	"	xor %edx, %edx\n"
	"	xor %ecx, %ecx\n"
	"	mov $4, %eax\n"
	"	enclu\n"
	/* Copies bytes, and says so. */
	"1:	mov %rdi, %r10\n"
	"	mov 24(%r10), %rcx\n"
	"	mov 16(%r10), %rsi\n"
	"	mov 8(%r10), %rdi\n"
	"	rep movsb\n"
	"	movq $1, 40(%r10)\n"
	"	jmp 9b\n"
	/* Runs a leaf. */
	"2:	mov 8(%rdi), %rax\n"
	"	mov 16(%rdi), %rbx\n"
	"	mov 24(%rdi), %rcx\n"
	"	mov 32(%rdi), %rdx\n"
	"	enclu\n"
	"	mov %rax, 40(%rdi)\n"
	"	jmp 9b\n"
	/* Counts, in a word of the enclave and in one outside. */
	"3:	mov 8(%rdi), %r10\n"
	"	mov 16(%rdi), %r11\n"
	"	mov 24(%rdi), %rcx\n"
	"4:	incq (%r10)\n"
	"	mov (%r10), %rax\n"
	"	mov %rax, (%r11)\n"
	"	dec %rcx\n"
	"	jnz 4b\n"
	"	jmp 9b\n"
	/* Where a thread goes on whose instruction cannot be completed. */
	"kit_retreat:\n"
	"	jmp 9b\n"
	"kit_end:\n"
	".popsection\n");

/* A page of a stream. */
struct page {
	uint64_t offset, flags;
	uint16_t measured, given;
};

static struct {
	uint64_t size;
	uint32_t ssa_pages;
	struct page *pages;
	uint8_t *contents;
	size_t count;
} image;

static FILE *out;
static uint8_t *base;
static int device;
static const void *vdso_enter;
static struct sgx_enclave_run state;
static uint64_t tcs, ssa_pages_per_frame, work, heap, heap_pages;
static struct sigstruct signature __attribute__((aligned(PAGE)));

/* --- writing streams --- */

static void record(const char *name, const void *fields, size_t length)
{
	uint8_t block[64] = { 0 };

	memcpy(block, name, strlen(name));
	memcpy(block + 8, fields, length);
	fwrite(block, sizeof(block), 1, out);
}

static void begin(uint64_t size, uint32_t ssa_pages)
{
	struct {
		uint32_t ssa_pages;
		uint64_t size;
	} __attribute__((packed)) fields = { ssa_pages, size };

	record("ECREATE", &fields, sizeof(fields));
}

/* Contents that are neither measured nor there are zeros. */
static void add(uint64_t offset, uint64_t flags, const uint8_t *contents, int measured)
{
	static const uint8_t zeros[PAGE];
	const uint64_t fields[2] = { offset, flags };

	record("EADD", fields, sizeof(fields));
	for (uint64_t at = 0; (contents || measured) && at < PAGE; at += CHUNK) {
		const uint64_t where = offset + at;

		record(measured ? "EEXTEND" : "UNMEASRD", &where, sizeof(where));
		fwrite((contents ? contents : zeros) + at, CHUNK, 1, out);
	}
}

static void add_code(uint64_t offset, uint64_t flags, uint8_t mark)
{
	uint8_t page[PAGE] = { 0 };

	memcpy(page, kit_start, kit_end - kit_start);
	page[PAGE - 1] = mark;
	add(offset, REG | R | X | flags, page, 1);
}

static void add_thread(uint64_t offset, uint64_t entry, uint32_t frames, uint32_t pages_per_frame, int measured)
{
	uint8_t page[PAGE] = { 0 };
	const uint64_t ssa = offset + PAGE;
	const uint32_t all = UINT32_MAX;

	memcpy(page + 16, &ssa, 8);
	memcpy(page + 28, &frames, 4);
	memcpy(page + 32, &entry, 8);
	memcpy(page + 64, &all, 4);
	memcpy(page + 68, &all, 4);
	add(offset, TCS, page, 1);
	for (uint32_t i = 0; i < frames * pages_per_frame; i++)
		add(ssa + i * PAGE, REG | R | W, NULL, measured);
}

static const uint8_t *pattern(uint64_t seed)
{
	static uint8_t page[PAGE];

	for (int i = 0; i < PAGE; i++)
		page[i] = (seed * 131 + i * 7) ^ (i >> 8);
	return page;
}

/* The smallest. */
static void plain(uint64_t argument)
{
	begin(0x10000, 1);
	add_code(0, 0, argument);
	add_thread(0x1000, 0, 2, 1, 1);
	add(0x4000, REG | R | W, NULL, 1);
}

/* Eight threads, three frames of two pages each. */
static void threads(uint64_t argument)
{
	(void)argument;
	begin(0x80000, 2);
	add_code(0, 0, 0);
	for (uint64_t i = 0; i < 8; i++)
		add_thread(0x1000 + i * 0x8000, 0, 3, 2, i % 2);
	add(0x7f000, REG | R | W, NULL, 1);
}

/* Pages with contents that are measured, and that are not, in turns. */
static void mixed(uint64_t argument)
{
	(void)argument;
	begin(0x100000, 1);
	add_code(0, 0, 0);
	add_thread(0x1000, 0, 2, 1, 0);
	for (uint64_t i = 0; i < 80; i++)
		add(0x10000 + i * PAGE, REG | R | W, pattern(i), i % 5 < 2);
	add(0xff000, REG | R | W, NULL, 0);
}

/* 32 GiB of addresses, with pages at both ends and in the middle. */
static void large(uint64_t argument)
{
	const uint64_t size = 1ul << 35;

	(void)argument;
	begin(size, 1);
	add_code(0, 0, 0);
	add_thread(size / 2, 0, 4, 1, 1);
	add(size - PAGE, REG | R | W, NULL, 1);
}

/* Every combination of permissions that Linux takes; code at the end. */
static void rights(uint64_t argument)
{
	static const uint64_t all[] = { R, R | W, R | X, R | W | X, X };

	(void)argument;
	begin(0x40000, 1);
	for (uint64_t i = 0; i < 15; i++)
		add(i * PAGE, REG | all[i % 5], pattern(i), 1);
	add_code(0x20000, W, 0);
	add_thread(0x21000, 0x20000, 2, 1, 1);
	add(0x30000, REG | R | W, NULL, 1);
}

/* A heap of so many pages, not measured. */
static void roomy(uint64_t argument)
{
	uint64_t size;

	for (size = 0x10000; size < 0x10000 + argument * PAGE;)
		size *= 2;
	begin(size, 1);
	add_code(0, 0, 0);
	add_thread(0x1000, 0, 2, 1, 1);
	add(0x4000, REG | R | W, NULL, 1);
	for (uint64_t i = 0; i < argument; i++)
		add(0x10000 + i * PAGE, REG | R | W, NULL, 0);
}

static const struct {
	const char *name;
	void (*write)(uint64_t argument);
} layouts[] = { { "plain", plain }, { "threads", threads }, { "mixed", mixed },
		{ "large", large }, { "rights", rights },   { "roomy", roomy } };

/* LAYOUT or LAYOUT:NUMBER. */
static void write_stream(const char *layout, const char *path)
{
	const char *colon = strchrnul(layout, ':');

	out = fopen(path, "w");
	if (!out)
		fail(2, "cannot write %s: %s", path, strerror(errno));
	for (size_t i = 0; i < sizeof(layouts) / sizeof(*layouts); i++)
		if (strlen(layouts[i].name) == (size_t)(colon - layout) && !strncmp(layouts[i].name, layout, colon - layout)) {
			layouts[i].write(*colon ? strtoull(colon + 1, NULL, 0) : 0);
			if (fclose(out))
				fail(2, "cannot write %s: %s", path, strerror(errno));
			return;
		}
	fail(2, "no layout is called %s", layout);
}

/* --- reading streams --- */

static void read_stream(const char *path)
{
	FILE *file = fopen(path, "r");
	uint8_t block[64];
	size_t room = 0;

	if (!file)
		fail(2, "cannot read %s: %s", path, strerror(errno));
	while (fread(block, sizeof(block), 1, file)) {
		uint64_t first, second;

		memcpy(&first, block + 8, 8);
		memcpy(&second, block + 16, 8);
		if (!memcmp(block, "ECREATE", 8)) {
			memcpy(&image.ssa_pages, block + 8, 4);
			memcpy(&image.size, block + 12, 8);
		} else if (!memcmp(block, "EADD\0\0\0", 8)) {
			if (image.count == room) {
				room = room ? room * 2 : 64;
				image.pages = realloc(image.pages, room * sizeof(*image.pages));
				/* A source has to be aligned, and new pages are zeros. */
				uint8_t *contents = mmap(NULL, room * PAGE, PROT_READ | PROT_WRITE,
							 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

				if (contents == MAP_FAILED || !image.pages)
					fail(2, "no memory for %zu pages", room);
				if (image.count) {
					memcpy(contents, image.contents, image.count * PAGE);
					munmap(image.contents, image.count * PAGE);
				}
				image.contents = contents;
			}
			image.pages[image.count++] = (struct page){ .offset = first, .flags = second };
		} else if (!memcmp(block, "EEXTEND", 8) || !memcmp(block, "UNMEASRD", 8)) {
			struct page *page = &image.pages[image.count - 1];
			const unsigned chunk = (first - page->offset) / CHUNK;

			if (!image.count || chunk >= PAGE / CHUNK ||
			    !fread(image.contents + (image.count - 1) * PAGE + chunk * CHUNK, CHUNK, 1, file))
				fail(2, "%s is not a whole stream", path);
			page->given |= 1 << chunk;
			if (block[0] == 'E')
				page->measured |= 1 << chunk;
		} else {
			fail(2, "%s is not a stream: %.8s", path, block);
		}
	}
	fclose(file);
	for (size_t i = 0; i < image.count; i++) {
		const struct page *page = &image.pages[i];

		if ((page->flags & TYPE) == TCS && !tcs) {
			tcs = page->offset;
			memcpy(&ssa_pages_per_frame, &image.ssa_pages, 4);
		}
	}
	/* The page for operands of leaves, by this kit's habit: the last one, or the one before the heap. */
	if (image.count) {
		work = image.pages[image.count - 1].offset;
		for (size_t i = 0; i < image.count && !heap; i++)
			if (image.pages[i].offset == 0x10000 && !image.pages[i].given) {
				heap = 0x10000;
				heap_pages = image.count - i;
				work = image.pages[i - 1].offset;
			}
	}
}

static void sign_stream(const char *stream, const char *key, const char *path)
{
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	uint8_t block[64];

	read_stream(stream);
	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	memset(block, 0, 64);
	memcpy(block, "ECREATE", 7);
	memcpy(block + 8, &image.ssa_pages, 4);
	memcpy(block + 12, &image.size, 8);
	EVP_DigestUpdate(hash, block, 64);
	for (size_t i = 0; i < image.count; i++) {
		memset(block, 0, 64);
		memcpy(block, "EADD", 4);
		memcpy(block + 8, &image.pages[i].offset, 8);
		memcpy(block + 16, &image.pages[i].flags, 8);
		EVP_DigestUpdate(hash, block, 64);
		for (uint64_t at = 0; image.pages[i].measured && at < PAGE; at += CHUNK) {
			const uint64_t where = image.pages[i].offset + at;

			memset(block, 0, 64);
			memcpy(block, "EEXTEND", 7);
			memcpy(block + 8, &where, 8);
			EVP_DigestUpdate(hash, block, 64);
			EVP_DigestUpdate(hash, image.contents + i * PAGE + at, CHUNK);
		}
	}
	EVP_DigestFinal_ex(hash, signature.measurement, NULL);
	EVP_MD_CTX_free(hash);
	signature.attributes = signature.attributes_mask = 4;
	signature.xfrm = 3;
	sign(key, &signature);
	out = fopen(path, "w");
	if (!out || !fwrite(&signature, sizeof(signature), 1, out) || fclose(out))
		fail(2, "cannot write %s: %s", path, strerror(errno));
}

/* --- loading --- */

static void read_file(const char *path, void *bytes, size_t length)
{
	FILE *file = fopen(path, "r");

	if (!file || !fread(bytes, length, 1, file))
		fail(2, "cannot read %zu bytes of %s", length, path);
	fclose(file);
}

static void write_file(const char *path, const void *bytes, size_t length)
{
	FILE *file = fopen(path, "w");

	if (!file || !fwrite(bytes, length, 1, file) || fclose(file))
		fail(2, "cannot write %s: %s", path, strerror(errno));
}

/* How many pages from `first` on can be added by one request. */
static size_t alike(size_t first)
{
	size_t end = first + 1;

	while (end < image.count && image.pages[end].flags == image.pages[first].flags &&
	       image.pages[end].measured == image.pages[first].measured &&
	       image.pages[end].offset == image.pages[end - 1].offset + PAGE)
		end++;
	return end - first;
}

static void create(void)
{
	static struct {
		uint64_t size, base;
		uint32_t ssa_pages, miscselect;
		uint8_t reserved[24];
		uint64_t attributes, xfrm;
		uint8_t rest[PAGE - 64];
	} secs;

	device = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	if (device < 0)
		fail(2, "cannot open /dev/sgx_enclave: %s", strerror(errno));
	uint8_t *room = mmap(NULL, 2 * image.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		fail(2, "no room for %#lx bytes: %s", image.size, strerror(errno));
	base = (uint8_t *)(((uintptr_t)room + image.size - 1) / image.size * image.size);
	secs.size = image.size;
	secs.base = (uint64_t)base;
	secs.ssa_pages = image.ssa_pages;
	secs.miscselect = signature.miscselect;
	secs.attributes = signature.attributes;
	secs.xfrm = signature.xfrm;
	struct sgx_enclave_create create = { .src = (uint64_t)&secs };

	if (ioctl(device, SGX_IOC_ENCLAVE_CREATE, &create))
		fail(4, "create: %s", strerror(errno));
	for (size_t i = 0; i < image.count; i += alike(i)) {
		uint64_t secinfo[8] __attribute__((aligned(64))) = { image.pages[i].flags };
		struct sgx_enclave_add_pages add = {
			.src = (uint64_t)image.contents + i * PAGE,
			.offset = image.pages[i].offset,
			.length = alike(i) * PAGE,
			.secinfo = (uint64_t)secinfo,
			.flags = image.pages[i].measured ? SGX_PAGE_MEASURE : 0,
		};

		if (image.pages[i].measured && image.pages[i].measured != 0xffff)
			fail(2, "Linux cannot measure a part of a page");
		while (add.length) {
			add.count = 0;
			if (ioctl(device, SGX_IOC_ENCLAVE_ADD_PAGES, &add) && errno != EINTR && errno != EAGAIN)
				fail(4, "add pages at %#llx: %s", (unsigned long long)add.offset, strerror(errno));
			add.src += add.count;
			add.offset += add.count;
			add.length -= add.count;
		}
	}
}

static int init(const struct sigstruct *with)
{
	struct sgx_enclave_init init = { .sigstruct = (uint64_t)with };

	return ioctl(device, SGX_IOC_ENCLAVE_INIT, &init) ? errno : 0;
}

/* What Linux answers to a SIGSTRUCT that is wrong, by its checks before EINIT; all that EINIT itself refuses is EPERM. */
static int expected(const struct sigstruct *wrong)
{
	uint32_t a, b, c, d;

	if (wrong->vendor && wrong->vendor != 0x8086)
		return EINVAL;
	__cpuid_count(0x12, 1, a, b, c, d);
	const uint64_t attributes = ((uint64_t)b << 32 | a) & ~(1ul << 3 | 1ul << 6 | 3ul << 8 | ~0ul << 11);
	const uint64_t xfrm = (uint64_t)d << 32 | c;

	__cpuid_count(0x12, 0, a, b, c, d);
	if (wrong->attributes & wrong->attributes_mask & ~attributes)
		return EINVAL;
	if (wrong->miscselect & wrong->miscmask & ~(b & 1))
		return EINVAL;
	return wrong->xfrm & wrong->xfrm_mask & ~xfrm ? EINVAL : EPERM;
}

static void flips(void)
{
	static const uint8_t ways[] = { 0x01, 0x80, 0xff };
	static struct sigstruct wrong __attribute__((aligned(PAGE)));
	unsigned long refused = 0, of_linux = 0;

	for (size_t at = 0; at < sizeof(signature); at++)
		for (size_t i = 0; i < sizeof(ways); i++) {
			wrong = signature;
			((uint8_t *)&wrong)[at] ^= ways[i];
			const int error = init(&wrong), wanted = expected(&wrong);

			if (error != wanted)
				fail(3, "byte %zu changed by %#x: %s instead of %s", at, ways[i], strerror(error), strerror(wanted));
			refused++;
			of_linux += error == EINVAL;
		}
	printf("refused %lu\n", refused);
	fprintf(stderr, "%lu of them by Linux's own checks\n", of_linux);
}

static void map_pages(void)
{
	for (size_t i = 0; i < image.count; i += alike(i)) {
		const struct page *page = &image.pages[i];
		const int protection = (page->flags & TYPE) == TCS ? PROT_READ | PROT_WRITE : (int)(page->flags & 7);

		if (mmap(base + page->offset, alike(i) * PAGE, protection, MAP_SHARED | MAP_FIXED, device, 0) == MAP_FAILED)
			fail(4, "map at %#lx: %s", page->offset, strerror(errno));
	}
	close(device);
}

/* --- calls --- */

/* Enters; 0 if the enclave has left by itself. */
static int call_by(uint64_t thread, uint32_t leaf, struct request *request)
{
	memset(&state, 0, sizeof(state));
	state.tcs = (uint64_t)base + thread;
	return enter(request, leaf, &state, vdso_enter, MAGIC) || state.function != EEXIT;
}

static void call(struct request *request)
{
	if (call_by(tcs, EENTER, request))
		fail(3, "leaf %u, exception %u, error %#x, address base + %#llx", state.function, state.exception_vector,
		     state.exception_error_code, (unsigned long long)(state.exception_addr - (uint64_t)base));
}

static void copy(void *to, const void *from, size_t length)
{
	call(&(struct request){ .operation = 1, .a = (uint64_t)to, .b = (uint64_t)from, .c = length });
}

static uint64_t leaf(uint64_t number, const void *b, void *c, void *d)
{
	struct request request = { 2, number, (uint64_t)b, (uint64_t)c, (uint64_t)d, 0 };

	call(&request);
	return request.result;
}

static void enter_all(void)
{
	unsigned count = 0;

	for (size_t i = 0; i < image.count; i++) {
		struct request nothing = { 0 };

		if ((image.pages[i].flags & TYPE) != TCS)
			continue;
		if (call_by(image.pages[i].offset, EENTER, &nothing))
			fail(3, "thread %u: leaf %u, exception %u", count, state.function, state.exception_vector);
		count++;
	}
	printf("entered %u\n", count);
}

/* A report for somebody, made inside, its 432 bytes copied out. */
static void make_report(const uint8_t target[512], uint64_t data, uint8_t report[432])
{
	uint8_t report_data[64] = { 0 }, *inside = base + work;

	memcpy(report_data, &data, sizeof(data));
	copy(inside, target, 512);
	copy(inside + 512, report_data, sizeof(report_data));
	leaf(EREPORT, inside, inside + 512, inside + 1024);
	copy(report, inside + 1024, 432);
}

static void print_bytes(const char *name, const uint8_t *bytes, size_t length)
{
	printf("%s ", name);
	for (size_t i = 0; i < length; i++)
		printf("%02x", bytes[i]);
	printf("\n");
}

static void own_report(uint8_t report[432])
{
	static const uint8_t nobody[512];

	make_report(nobody, 0, report);
}

static void print_report(void)
{
	uint8_t report[432], modulus_hash[32];
	uint64_t attributes, xfrm;
	uint32_t misc;
	uint16_t product, version;

	own_report(report);
	memcpy(&misc, report + 16, 4);
	memcpy(&attributes, report + 48, 8);
	memcpy(&xfrm, report + 56, 8);
	memcpy(&product, report + 256, 2);
	memcpy(&version, report + 258, 2);
	print_bytes("MRENCLAVE", report + 64, 32);
	EVP_Q_digest(NULL, "SHA256", NULL, signature.modulus, KEY_BYTES, modulus_hash, NULL);
	printf("MRSIGNER %s\n", memcmp(report + 128, modulus_hash, 32) ? "is another" : "is the key's");
	/* INIT is bit 0, which the processor has set. */
	printf("attributes %#lx, XFRM %#lx, MISC %#x, product %u, version %u\n", attributes, xfrm, misc, product, version);
	print_bytes("extended product", report + 32, 16);
}

static uint64_t get_key(uint16_t name, uint16_t policy, const uint8_t *key_id, uint8_t key[16])
{
	uint8_t request[512] = { 0 }, report[432], *inside = base + work;

	own_report(report);
	memcpy(request, &name, 2);
	memcpy(request + 2, &policy, 2);
	memcpy(request + 8, report, 16); /* CPUSVN */
	if (key_id)
		memcpy(request + 40, key_id, 32);
	copy(inside, request, sizeof(request));
	const uint64_t code = leaf(EGETKEY, inside, inside + 512, NULL);

	copy(key, inside + 512, 16);
	return code;
}

static void seal(const char *policy)
{
	uint8_t key[16];
	const uint64_t code = get_key(KEY_SEAL, strcmp(policy, "signer") ? 1 : 2, NULL, key);

	if (code)
		fail(3, "EGETKEY: %lu", code);
	print_bytes("seal key", key, sizeof(key));
}

static void write_target(const char *path)
{
	uint8_t report[432], target[512] = { 0 };

	own_report(report);
	memcpy(target, report + 64, 32);
	memcpy(target + 32, report + 48, 16);
	memcpy(target + 52, report + 16, 4);
	write_file(path, target, sizeof(target));
}

static void prove(const char *target_path, const char *report_path, uint64_t seed)
{
	uint8_t target[512], report[432];

	read_file(target_path, target, sizeof(target));
	make_report(target, seed, report);
	write_file(report_path, report, sizeof(report));
}

static void check_report(const char *path)
{
	uint8_t report[432], key[16], mac[16];
	char cipher[] = "AES-128-CBC";
	size_t length;
	uint64_t data;

	read_file(path, report, sizeof(report));
	if (get_key(KEY_REPORT, 0, report + 384, key))
		fail(3, "EGETKEY gives no report key");
	OSSL_PARAM parameters[] = { OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_CIPHER, cipher, 0),
				    OSSL_PARAM_construct_end() };

	if (!EVP_Q_mac(NULL, "CMAC", NULL, NULL, parameters, key, sizeof(key), report, 384, mac, sizeof(mac), &length))
		fail(2, "OpenSSL makes no CMAC");
	memcpy(&data, report + 320, 8);
	printf("the report is %s, data %lu\n", memcmp(mac, report + 416, 16) ? "not genuine" : "genuine", data);
}

/* --- the heap --- */

static uint64_t word(uint64_t seed, uint64_t page)
{
	uint64_t x = (seed << 32 | page) * 0x9e3779b97f4a7c15;

	return x ^ x >> 29;
}

static uint8_t *place(uint64_t page)
{
	return base + heap + page * PAGE + page % 511 * 8;
}

static void fill(uint64_t seed)
{
	for (uint64_t page = 0; page < heap_pages; page++) {
		const uint64_t value = word(seed, page);

		copy(place(page), &value, sizeof(value));
	}
	printf("filled\n");
}

/*
 * Gives up what the thread was doing when the exception came: a second entry writes another address over the saved
 * one, and ERESUME goes on there.
 */
static void retreat(void)
{
	const uint64_t retreat = (uint64_t)base + image.pages[0].offset + (kit_retreat - kit_start);
	/* RIP in the GPRSGX region at the end of the first frame. */
	uint8_t *saved = base + tcs + PAGE + ssa_pages_per_frame * PAGE - 184 + 136;

	copy(saved, &retreat, sizeof(retreat));
	if (call_by(tcs, ERESUME, NULL))
		fail(3, "no retreat: leaf %u, exception %u", state.function, state.exception_vector);
}

static void sweep(uint64_t seed)
{
	uint64_t right = 0, wrong = 0, refused = 0, first = UINT64_MAX;

	for (uint64_t page = 0; page < heap_pages; page++) {
		uint64_t value = 0;
		struct request get = { 1, (uint64_t)&value, (uint64_t)place(page), sizeof(value), 0, 0 };

		if (call_by(tcs, EENTER, &get)) {
			if (state.exception_vector != 14)
				fail(3, "page %lu: exception %u", page, state.exception_vector);
			refused++;
			if (first == UINT64_MAX)
				first = page;
			retreat();
		} else if (value == word(seed, page)) {
			right++;
		} else {
			wrong++;
		}
	}
	printf("swept: %lu right, %lu wrong, %lu refused, first %ld\n", right, wrong, refused, (long)first);
}

static const char *moved(void *from, size_t old, size_t new, int flags, void *to)
{
	return mremap(from, old, new, MREMAP_MAYMOVE | flags, to) == MAP_FAILED ? strerrorname_np(errno) : "fine";
}

static void move(uint64_t seed)
{
	const size_t some = 4 * PAGE;
	uint8_t *there = base + heap + 2 * PAGE;
	void *away = mmap(NULL, some, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	printf("grown: %s, copied: %s, kept: %s\n", moved(there, PAGE, 2 * PAGE, 0, NULL),
	       moved(there, 0, PAGE, 0, NULL), moved(there, PAGE, PAGE, MREMAP_DONTUNMAP, NULL));
	sweep(seed);
	printf("moved: %s\n", moved(there, some, some, MREMAP_FIXED, away));
	sweep(seed);
	printf("moved back: %s\n", moved(away, some, some, MREMAP_FIXED, there));
	sweep(seed);
}

/*
 * Waits for a line. Everything but the heap is used before, and once more whenever the line is "again": so what is
 * evicted when the reclaimer rests is heap.
 */
static void hold(void)
{
	char line[16];
	uint64_t word;

	do {
		for (size_t i = 0; i < image.count; i++)
			if (image.pages[i].flags & R && (!heap || image.pages[i].offset < heap))
				copy(&word, base + image.pages[i].offset, sizeof(word));
		printf("holding\n");
	} while (fgets(line, sizeof(line), stdin) && !strcmp(line, "again\n"));
}

static void *spin_inside(void *count)
{
	struct request request = { 3, (uint64_t)base + work, (uint64_t)count, INT64_MAX, 0, 0 };

	call(&request);
	return NULL;
}

static void spin(void)
{
	static volatile uint64_t count;
	uint64_t last = 0;
	pthread_t thread;

	pthread_create(&thread, NULL, spin_inside, (void *)&count);
	for (;;) {
		usleep(100000);
		const uint64_t now = count;

		if (now < last)
			fail(3, "the count went back from %lu to %lu", last, now);
		if (now > last)
			printf("counted %lu\n", now - last);
		last = now;
	}
}

static void take_steps(char **arguments)
{
	for (int at = 0; arguments[at];) {
		const char *step = arguments[at++];
		const char *first = arguments[at], *second = first ? arguments[at + 1] : NULL;

		if (!strcmp(step, "flips")) {
			continue; /* Was before EINIT. */
		} else if (!strcmp(step, "enter")) {
			enter_all();
		} else if (!strcmp(step, "report")) {
			print_report();
		} else if (!strcmp(step, "spin")) {
			spin();
		} else if (!strcmp(step, "hold")) {
			hold();
		} else if (!first) {
			fail(2, "the step %s is not there, or an argument is missing", step);
		} else if (!strcmp(step, "seal")) {
			seal(first);
			at++;
		} else if (!strcmp(step, "target")) {
			write_target(first);
			at++;
		} else if (!strcmp(step, "check")) {
			check_report(first);
			at++;
		} else if (!strcmp(step, "fill")) {
			fill(strtoull(first, NULL, 0));
			at++;
		} else if (!strcmp(step, "sweep")) {
			sweep(strtoull(first, NULL, 0));
			at++;
		} else if (!strcmp(step, "move")) {
			move(strtoull(first, NULL, 0));
			at++;
		} else if (!strcmp(step, "prove") && second && arguments[at + 2]) {
			prove(first, second, strtoull(arguments[at + 2], NULL, 0));
			at += 3;
		} else {
			fail(2, "no step is called %s", step);
		}
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && !strcmp(argv[1], "stream")) {
		write_stream(argv[2], argv[3]);
		return 0;
	}
	if (argc == 5 && !strcmp(argv[1], "sign")) {
		sign_stream(argv[2], argv[3], argv[4]);
		return 0;
	}
	if (argc < 4 || strcmp(argv[1], "load"))
		fail(2, "see the head of the source for usage");
	vdso_enter = find_in_vdso("__vdso_sgx_enter_enclave");
	if (!vdso_enter)
		fail(2, "the vDSO has no __vdso_sgx_enter_enclave");
	read_stream(argv[2]);
	read_file(argv[3], &signature, sizeof(signature));
	create();
	if (argc > 4 && !strcmp(argv[4], "flips"))
		flips();
	const int error = init(&signature);

	if (error)
		fail(4, "init: %s", strerror(error));
	if (init(&signature) != EINVAL)
		fail(3, "a second EINIT was not refused");
	map_pages();
	printf("loaded\n");
	take_steps(argv + 4);
	printf("done\n");
	return 0;
}
