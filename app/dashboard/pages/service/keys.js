export class Keys { constructor() {} async fetch() {} view() { return ""; } }
