// What the page says, in English and Indonesian.
const WORDS = {
  en: {
    "after": "Assistant",
    "all models": "Models", "answer failed": "The answer failed: {reason}",
    "at this pace": "Projected this month", "activate": "Activate", "by day": "By day", "by model": "By model",
    "chat": "Chat", "chosen days": "Date range", "conversation": "Conversation", "conversations": "Conversations",
    "conversations of": "Conversations on {day}", "cost": "Cost", "csv": "Download CSV", "daily chart": "{what} by day, {first} to {last}",
    "day": "Day", "deactivate": "Deactivate", "deleted": "(deleted)", "each answer": "{tokens} tokens ({input} in, {output} out), {cost}, {model}",
    "estimated": "Estimated", "failed": "The server answered with an error ({status}).", "first day": "From",
    "for prices": "For prices.toml", "inactive": "inactive", "input": "Input", "language": "Language", "last": "Last message", "last day": "To", "loading": "Loading…",
    "log in": "Log in", "log out": "Log out", "message": "Message", "messages": "Messages", "model": "Model", "month": "Month",
    "monthly chart": "{what} by month", "months": "Months", "new conversation": "New conversation", "next": "Next page", "no model": "(no model)",
    "no price": "no price", "none": "(none)", "nothing": "No usage in this period.", "no user": "There is no such user.", "no users": "No users found.", "log in again": "Log in again.", "cut off": "The connection was lost. What the model has answered is still counted.", "no page": "There is no such page.", "back": "Show the usage of this month", "insecure": "Over plain HTTP the login ends with each reload. Use HTTPS.", "nothing yet": "No usage yet. It appears here as soon as a model answers.",
    "of user": "Usage of {name}", "order": "Sort by", "output": "Output", "password": "Password", "previous": "Previous page", "price": "Price",
    "priced": "priced", "priced in part": "{part} of {all} messages unpriced", "question": "Your message", "search": "Username contains",
    "send": "Send", "show": "Show", "skip": "Skip to main content", "start": "Say something. Each answer shows its tokens and its cost.",
    "sure": "Deactivate {name}? They will be logged out everywhere, and cannot log in again.", "time zone": "Days are in the {zone} time zone.",
    "tokens": "Tokens", "total": "Total", "unknown price": "no price known", "unpriced": "Unpriced",
    "unpriced note": "Unpriced messages: {count}. They are not included in the cost.", "estimated note": "Messages with estimated tokens: {count}. The provider reported none.",
    "unreachable": "The server is unreachable. Try again.", "usage": "Usage", "user": "User", "username": "Username", "users": "Users", "who": "You", "what": "Metric",
    "everyone": "Everyone", "health": "Health", "now": "Now", "since start": "Since the server started",
    "backfill due": "The totals are not complete yet: run python migrate_token_data.py.", "sums complete": "All totals are complete. To verify them, run python migrate_token_data.py --verify.",
    "health note": "The log has the reason of each failure. GET /metrics has the same figures for Prometheus.",
    "health messages_pending": "Answers in progress", "health messages": "Messages counted", "health estimated": "Estimated", "health unpriced": "Unpriced",
    "health complete": "Answers complete", "health interrupted": "Answers interrupted", "health failed": "Answers failed",
    "health model_retries": "Model retries", "health transaction_retries": "Transaction retries", "health settlement_failures": "Fallback settlements",
  },
  id: {
    "after": "Asisten",
    "all models": "Model", "answer failed": "Jawaban gagal: {reason}",
    "at this pace": "Proyeksi bulan ini", "activate": "Aktifkan", "by day": "Per hari", "by model": "Per model",
    "chat": "Obrolan", "chosen days": "Hari yang dipilih", "conversation": "Percakapan", "conversations": "Percakapan",
    "conversations of": "Percakapan pada {day}", "cost": "Biaya", "csv": "Unduh CSV", "daily chart": "{what} per hari, {first} sampai {last}",
    "day": "Hari", "deactivate": "Nonaktifkan", "deleted": "(dihapus)", "each answer": "{tokens} token ({input} masuk, {output} keluar), {cost}, {model}",
    "estimated": "Estimasi", "failed": "Server menjawab dengan kesalahan ({status}).", "first day": "Dari",
    "for prices": "Untuk prices.toml", "inactive": "nonaktif", "input": "Masukan", "language": "Bahasa", "last": "Pesan terakhir", "last day": "Sampai", "loading": "Memuat…",
    "log in": "Masuk", "log out": "Keluar", "message": "Pesan", "messages": "Pesan", "model": "Model", "month": "Bulan",
    "monthly chart": "{what} per bulan", "months": "Bulan", "new conversation": "Percakapan baru", "next": "Halaman berikutnya", "no model": "(tanpa model)",
    "no price": "tanpa harga", "none": "(tidak ada)", "nothing": "Tidak ada pemakaian pada periode ini.", "no user": "Pengguna tidak ditemukan.", "no users": "Pengguna tidak ditemukan.", "log in again": "Silakan masuk lagi.", "cut off": "Koneksi terputus. Jawaban model tetap dihitung.", "no page": "Halaman tidak ditemukan.", "back": "Tampilkan pemakaian bulan ini", "insecure": "Melalui HTTP biasa, sesi berakhir setiap kali halaman dimuat ulang. Gunakan HTTPS.", "nothing yet": "Belum ada pemakaian. Setiap jawaban model langsung dihitung di sini.",
    "of user": "Pemakaian {name}", "order": "Urutkan", "output": "Keluaran", "password": "Kata sandi", "previous": "Halaman sebelumnya", "price": "Harga",
    "priced": "harga tersedia", "priced in part": "{part} dari {all} pesan tanpa harga", "question": "Pesan Anda", "search": "Nama pengguna mengandung",
    "send": "Kirim", "show": "Tampilkan", "skip": "Langsung ke isi", "start": "Tulis sesuatu. Setiap jawaban menampilkan token dan biayanya.",
    "sure": "Nonaktifkan {name}? Semua sesi berakhir, dan sesi baru ditolak.", "time zone": "Hari dihitung dalam zona waktu {zone}.",
    "tokens": "Token", "total": "Total", "unknown price": "harga tidak diketahui", "unpriced": "Tanpa harga",
    "unpriced note": "{count} pesan tidak diketahui harganya, dan tidak termasuk dalam biaya.", "estimated note": "Pesan dengan token estimasi: {count}. Penyedia tidak melaporkannya.",
    "unreachable": "Server tidak dapat dihubungi. Coba lagi.", "usage": "Pemakaian", "user": "Pengguna", "username": "Nama pengguna", "users": "Pengguna", "who": "Anda", "what": "Metrik",
    "everyone": "Semua pengguna", "health": "Status sistem", "now": "Sekarang", "since start": "Sejak server dimulai",
    "backfill due": "Total belum lengkap: jalankan python migrate_token_data.py.", "sums complete": "Total sudah lengkap. Untuk memeriksanya, jalankan python migrate_token_data.py --verify.",
    "health note": "Alasan setiap kegagalan ada di log. GET /metrics berisi angka yang sama untuk Prometheus.",
    "health messages_pending": "Jawaban sedang diproses", "health messages": "Pesan dihitung", "health estimated": "Estimasi", "health unpriced": "Tanpa harga",
    "health complete": "Jawaban lengkap", "health interrupted": "Jawaban terputus", "health failed": "Jawaban gagal",
    "health model_retries": "Percobaan ulang model", "health transaction_retries": "Percobaan ulang transaksi", "health settlement_failures": "Penyelesaian cadangan",
  },
};

export const LANGUAGES = { en: "English", id: "Bahasa Indonesia" };
const KEPT = "foundation-language";

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null; // the browser allows no storage
  }
}

function preferred() {
  const wanted = [kept(), ...navigator.languages.map((name) => name.split("-")[0])];
  return wanted.find((name) => Object.hasOwn(WORDS, name ?? "")) ?? "en";
}

export const language = preferred();

export function speak(name) {
  try {
    localStorage.setItem(KEPT, name);
  } finally {
    location.reload();
  }
}

export function t(key, values = {}) {
  return WORDS[language][key].replace(/{(\w+)}/g, (_, name) => values[name]);
}
